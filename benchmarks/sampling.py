"""Sampling against transformers' `generate`: the same weights, prompts and lengths, temperature 1, no top-k, no top-p.

    python benchmarks/sampling.py                    # shape of SmolLM2-135M, 256 responses of 128 tokens, bf16: on a GPU
    python benchmarks/sampling.py --model setups/reviews/sft --rows 64 --prompt-tokens 16 --response-tokens 33 --dtype fp32

Half of the prompts are half as long, so that there is padding; each is sampled twice, as in the online scripts. The sides
take turns, --rounds times, after a first call of each, which is told apart: it captures, or compiles. On a GPU `generate`
compiles its static step by itself. No response ends by itself but by chance. A side that fails is told, and the others go on.
The floor is what reading the weights once a token, and the cache, would take at the bandwidth of a large copy, which is
measured too. The last line is JSON.
"""

import copy
import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import tyro
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.shapes import config_of  # noqa: E402
from common import fuse, pad, pick_device  # noqa: E402
from ipo_online import sample  # noqa: E402


@dataclass
class Args:
    model: str | None = None
    """causal language model, folder or Hub name (default: random weights in --shape)"""
    shape: Literal["smollm2-135m", "pythia-410m"] = "smollm2-135m"
    """whose shape the model has where none is named"""
    rows: int = 256
    """responses at a time"""
    prompt_tokens: int = 128
    """tokens of the longer half of the prompts"""
    response_tokens: int = 128
    """tokens of a response"""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """of the weights; a further side has fp32 weights under autocast to bf16"""
    rounds: int = 5
    """calls of each side, after its first"""
    sides: tuple[str, ...] = (
        "ours",
        "ours, autocast",
        "ours, --compile",
        "generate, dynamic",
        "generate, static",
    )
    """what is measured"""
    device: str = "auto"
    """cpu, cuda ... (auto: cuda where there is one)"""


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def bandwidth(device: str) -> float:
    """Bytes a second that a copy of 1 GiB reads and writes, the median of ten."""
    source = torch.ones(2**28, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(11):
        synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(seconds[1:])


def main(args: Args) -> None:
    device = pick_device(args.device)
    torch.manual_seed(0)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(config_of(args.shape))
    full = model.to(device).eval()
    model = copy.deepcopy(full).to(torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    theirs = copy.deepcopy(model)
    compiled = copy.deepcopy(model)
    compiled.compile(dynamic=False)
    vocabulary = model.config.vocab_size
    tokenizer = SimpleNamespace(eos_token_id=vocabulary - 1, pad_token_id=0)
    lengths = [args.prompt_tokens // (1 + i % 2) for i in range(args.rows // 2)]
    prompts = [torch.randint(1, vocabulary - 1, (length,)).tolist() for length in lengths] * 2
    ids, mask = pad(prompts, tokenizer, device, "left")

    def ours(model):
        return sum(
            map(
                len,
                sample(
                    fuse(model), prompts, torch.rand(len(prompts), args.response_tokens), tokenizer
                ),
            )
        )

    def generate(cache):
        AttentionInterface.register("sdpa", sdpa_attention_forward)  # transformers' own
        options = {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        options |= {
            "max_new_tokens": args.response_tokens,
            "cache_implementation": cache,
            "attention_mask": mask,
        }
        return (theirs.generate(ids, **options).shape[1] - ids.shape[1]) * len(ids)

    def autocast():
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return ours(full)

    sides = {
        "ours": lambda: ours(model),
        "ours, autocast": autocast,
        "ours, --compile": lambda: ours(compiled),
        "generate, dynamic": lambda: generate("dynamic"),
        "generate, static": lambda: generate("static"),
    }
    first, speeds, failed = {}, {name: [] for name in args.sides}, {}
    for _ in range(args.rounds + 1):
        for name in speeds:
            if name in failed:
                continue
            synchronize(device)
            begin = time.perf_counter()
            try:
                tokens = sides[name]()
            except RuntimeError as error:  # out of memory, say: the others go on
                failed[name] = {"failed": str(error).strip().splitlines()[0][:200]}
                print(f"{name}: {failed[name]['failed']}", flush=True)
                continue
            synchronize(device)
            seconds = time.perf_counter() - begin
            if name in first:
                speeds[name].append(tokens / seconds)
            first.setdefault(name, seconds)

    config = model.config
    heads = (
        getattr(config, "num_key_value_heads", config.num_attention_heads)
        * 2
        * config.num_hidden_layers
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 if args.dtype == "bf16" else 4
    cached = sum(map(len, prompts)) + len(prompts) * args.response_tokens / 2  # tokens, halfway
    read = size * (sum(p.numel() for p in model.parameters()) + cached * heads * width)
    floor = len(prompts) * bandwidth(device) / read
    results, speeds = (
        failed,
        {name: values for name, values in speeds.items() if name not in failed},
    )
    for name, values in speeds.items():
        median = statistics.median(values)
        results[name] = {
            "tokens_per_second": values,
            "median": median,
            "share_of_floor": median / floor,
            "first": first[name],
        }
        ratios = [
            f"{median / statistics.median(speeds[o]):.2f} x {o}"
            for o in speeds
            if o.startswith("generate") and o != name
        ]
        spread = f"{median:,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f}), {median / floor:.1%} of the floor"
        print(
            f"{name}: {spread}, first call {first[name]:.1f} s"
            + (f"; {', '.join(ratios)}" if "ours" in name else "")
        )
    print(f"floor: {floor:,.0f} tokens/s")
    machine = (
        torch.cuda.get_device_name()
        if device != "cpu"
        else f"{platform.processor() or platform.machine()}, CPU"
    )
    machine = {"machine": machine, "threads": torch.get_num_threads()}
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(
        json.dumps(
            {
                "results": results,
                "floor": floor,
                **machine,
                "versions": versions,
                "arguments": asdict(args),
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
