"""Memory and time of one forward and backward pass over a whole batch, ours against the naive form.

    python benchmarks/backward.py                         # on a GPU: 256 sequences of 256 tokens, SmolLM2-135M's shape
    python benchmarks/backward.py --rows 16 --tokens 128 --precision fp32                             # what a CPU can do
    python benchmarks/backward.py --count --shape pythia-410m       # nothing but what a pass keeps, counted on the CPU

Not accumulated, and no layer checkpointed unless a side says so; policy, reference and preference model are resident. Naive
means logits of all positions in fp32, as a model returns them, and one log-softmax. Both responses of a pair count as
sequences; half of each is prompt. Every side is a process of its own, so that peak memory is its own: what CUDA allocated, or
what the process occupied. The last line is JSON.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.shapes import config_of  # noqa: E402
from common import Batch, fuse, pick_device, recomputing  # noqa: E402
from ipo_online import preference_loss, sequence_logprob  # noqa: E402


@dataclass
class Args:
    shape: Literal["smollm2-135m", "pythia-410m"] = "smollm2-135m"
    """whose shape the models have; weights are random"""
    count: bool = False
    """count the bytes that autograd keeps for the backward pass, for each token and layer, instead of measuring"""
    rows: int = 256
    """sequences, two for each pair"""
    tokens: int = 256
    """tokens of each, half of them response"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 computes under autocast; weights are fp32"""
    rounds: int = 3
    """passes, after one that is not counted"""
    device: str = "auto"
    """cpu, cuda ... (auto: cuda where there is one)"""
    side: Literal["ours", "ours, selective", "ours, full", "naive"] | None = None
    """measure this side alone, in this process"""


def kept(args: Args, layers: int, tokens: int, checkpointing: str) -> int:
    """Bytes that two sequences of `tokens` tokens keep between the forward and the backward pass."""
    config = config_of(args.shape)
    config.num_hidden_layers = layers
    model = fuse(AutoModelForCausalLM.from_config(config)).eval()
    ids = torch.randint(0, config.vocab_size, (2, tokens))
    batch = Batch(ids, (torch.arange(tokens) >= tokens // 2).expand_as(ids))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
    with MemTracker() as tracker, autocast, recomputing(model, checkpointing):
        _held = sequence_logprob(model, batch)
        return tracker.get_tracker_snapshot("current")[torch.device("cpu")]["Total"]


def count(args: Args) -> None:
    """Print how many bytes a layer keeps for a token until the backward pass; what does not grow with tokens cancels out."""
    layers = config_of(args.shape).num_hidden_layers
    for checkpointing in ("off", "selective", "full"):
        (a, b), (c, d) = ([kept(args, n, tokens, checkpointing) for tokens in (128, 256)] for n in (1, 2))
        each = (d - c - (b - a)) / 256
        whole = each * layers * args.rows * args.tokens
        print(
            f"{args.shape}, {args.precision}, {checkpointing}: {each / 1e3:.1f} kB a token and layer, {layers} layers;",
            end=" ",
        )
        print(f"{args.rows} x {args.tokens} tokens keep {whole / 1e9:.1f} GB")


def naive(model, batch: Batch) -> torch.Tensor:
    """(N,) log pi(y | x) by way of all logits."""
    logprobs = model(batch.ids).logits[:, :-1].float().log_softmax(-1)
    return (logprobs.gather(-1, batch.ids[:, 1:, None]).squeeze(-1) * batch.mask[:, 1:]).sum(1)


def peak_arithmetic(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of ten."""
    n = 8192 if device != "cpu" else 2048
    a, seconds = torch.randn(n, n, device=device, dtype=dtype), []
    for _ in range(10):
        begin = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * n**3 / min(seconds)


def measure(args: Args) -> dict:
    """Seconds of each pass, peak memory in bytes, and the share of the arithmetic that the device can do."""
    device = pick_device(args.device)
    torch.manual_seed(0)
    config = config_of(args.shape)
    policy, reference = (AutoModelForCausalLM.from_config(config).to(device).eval() for _ in range(2))
    preference_model = AutoModelForSequenceClassification.from_config(config).to(device)
    for model in (policy, reference, preference_model) if args.side != "naive" else ():
        fuse(model)  # as load_model does
    for model in (reference, preference_model):
        model.requires_grad_(False)
    ids = torch.randint(0, config.vocab_size, (args.rows, args.tokens), device=device)
    batch = Batch(ids, (torch.arange(args.tokens, device=device) >= args.tokens // 2).expand_as(ids))
    score = naive if args.side == "naive" else sequence_logprob
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.precision == "bf16")
    seconds = []
    for _ in range(args.rounds + 1):
        begin = time.perf_counter()
        with autocast:
            with recomputing(policy, args.side.partition(", ")[2] or "off"):
                own = score(policy, batch).chunk(2)
            with torch.no_grad():
                fixed = score(reference, batch).chunk(2)
        preference_loss(*own, *fixed, 0.1).mean().backward()
        policy.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    memory = (
        torch.cuda.max_memory_allocated() if device != "cpu" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    body = sum(p.numel() for p in policy.parameters()) - policy.get_input_embeddings().weight.numel()
    head = policy.get_output_embeddings().weight.numel()
    # 2 a weight and token forward, twice that backward, and the reference's forward; attention adds 4 T H a layer and token
    scores = 2 * args.tokens * config.hidden_size * config.num_hidden_layers
    needed = 8 * args.rows * (args.tokens * (body + scores) + args.tokens // 2 * head)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    share = needed / statistics.median(seconds[1:]) / peak_arithmetic(device, dtype)
    name = torch.cuda.get_device_name() if device != "cpu" else f"{platform.processor() or platform.machine()}, CPU"
    return {"seconds": seconds[1:], "memory": memory, "share_of_peak": share, "machine": name}


def main(args: Args) -> None:
    if args.count:
        return count(args)
    if args.side:
        return print(json.dumps(measure(args)))
    results = {}
    for side in ("ours", "ours, selective", "ours, full", "naive"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        if done.returncode:
            results[side] = {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
            print(f"{side}: {results[side]['failed']}")
            continue
        results[side] = json.loads(done.stdout.splitlines()[-1])
        seconds = results[side]["seconds"]
        spread = f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
        print(f"{side}: {spread}, {results[side]['memory'] / 2**30:.2f} GiB, {results[side]['share_of_peak']:.1%} of the peak")
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps({"results": results, "versions": versions, "arguments": asdict(args)}))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
