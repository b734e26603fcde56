"""Tokens a second of the scripts' `sample` against transformers' `generate`, as ratios.

    python benchmarks/sampling.py --model setups/reviews/sft --rows 64 --prompt-tokens 16 \
        --response-tokens 33
    python benchmarks/sampling.py --dtype bf16 --sides sample fast dynamic static   # on a GPU

The same weights, prompts and lengths, at temperature 1 and from the whole vocabulary. Half of the
prompts are half as long, so that there is padding. No response ends early. The sides take turns;
the first call of each is not counted. The last line is JSON.
"""

import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import PartialState
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where common.py is

import fast  # noqa: E402
from common import check_ranges, from_pretrained, pad, run_command  # noqa: E402
from ipo_online import sample  # noqa: E402

SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
SMOLLM2_135M |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}


@dataclass
class Args:
    model: str | None = None
    """folder or Hub name (random weights in the shape of SmolLM2-135M)"""
    rows: int = 256
    """responses at a time"""
    prompt_tokens: int = 128
    """tokens of the longer half of the prompts"""
    response_tokens: int = 128
    """tokens of a response"""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """of the weights, on all sides"""
    rounds: int = 5
    """calls of each side, after its first"""
    sides: tuple[str, ...] = ("sample", "dynamic", "static")
    """sample: the scripts'; fast: that of --fast; dynamic and static: generate, by its cache"""


def machine() -> dict:
    """What figures depend on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {package: version(package) for package in ("torch", "transformers")}
    return {"machine": name, "threads": torch.get_num_threads(), **versions}


def seconds_now() -> float:
    """The time when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(args: Args) -> None:
    check_ranges(args)
    torch.manual_seed(0)
    device = PartialState().device
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2_135M))
    if args.model:
        model = from_pretrained(AutoModelForCausalLM, args.model, "model", dtype=torch.float32)
    model = model.to(device, torch.bfloat16 if args.dtype == "bf16" else torch.float32).eval()
    lengths = [max(1, args.prompt_tokens // (1 + i % 2)) for i in range(args.rows)]
    prompts = [torch.randint(1, model.config.vocab_size, (length,)).tolist() for length in lengths]
    ids, mask = (tensor.to(device) for tensor in pad(prompts, "left"))
    uniforms = torch.rand(args.rows, args.response_tokens)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    options |= {"eos_token_id": None, "max_new_tokens": args.response_tokens}

    ours = {"sample": sample, "fast": fast.sample}

    def respond(side: str):
        if side in ours:
            return ours[side](model, prompts, uniforms, ends=[-1])  # no token is -1
        responses = model.generate(ids, attention_mask=mask, cache_implementation=side, **options)
        return responses[:, ids.shape[1] :]

    speeds = {side: [] for side in args.sides}
    for turn in range(args.rounds + 1):
        for side in args.sides:
            began = seconds_now()
            responses = respond(side)
            seconds = seconds_now() - began
            assert {len(row) for row in responses} == {args.response_tokens}
            if turn:
                speeds[side].append(args.rows * args.response_tokens / seconds)
    medians, ratios = {side: statistics.median(values) for side, values in speeds.items()}, {}
    for side, values in speeds.items():
        print(f"{side}: {medians[side]:,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})")
    for one, other in itertools.product(args.sides, args.sides):
        if one in ours and other not in ours:
            ratios[f"{one} / {other}"] = medians[one] / medians[other]
            print(f"{one} / {other}: {medians[one] / medians[other]:.2f}")
    print(json.dumps({"speeds": speeds, "ratios": ratios, **machine(), "arguments": asdict(args)}))


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
