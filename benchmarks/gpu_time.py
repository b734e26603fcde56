"""What a GPU does in a decoding step and in a training pass: its kernels, the longest first.

    python benchmarks/gpu_time.py        # shape of SmolLM2-135M, 256 responses behind prompts of 128 tokens, 64 x 256 trained

Sampling in bf16 weights, under autocast, and compiled; a pass forward and backward under autocast. Beside the sums of the
kernels' own times stands what the whole took: the rest is waiting for Python, or for the next kernel to begin. The last line
is JSON.
"""

import copy
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import tyro
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.shapes import config_of  # noqa: E402
from common import Batch, fail, fuse, pad, pick_device, run_command  # noqa: E402
from ipo_online import sample, sequence_logprob  # noqa: E402


@dataclass
class Args:
    shape: Literal["smollm2-135m", "pythia-410m"] = "smollm2-135m"
    """whose shape the model has; weights are random"""
    rows: int = 256
    """responses at a time, two to each prompt; every other prompt is half as long"""
    prompt_tokens: int = 128
    """tokens of the longer half of the prompts"""
    response_tokens: int = 128
    """tokens of a response"""
    train_rows: int = 64
    """sequences of a training pass, of prompt and response tokens together"""
    longest: int = 12
    """kernels that are told of each"""


def milliseconds(function, rounds: int = 3) -> float:
    """Median of a few calls, the GPU's work included."""
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken)


def kernels_of(function, longest: int) -> dict:
    """How many kernels a call runs, their milliseconds, and the longest: [milliseconds, how often, name]."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    rows = [[event.self_device_time_total / 1000, event.count, event.key[:100]] for event in events]
    return {"kernels": sum(count for _, count, _ in rows), "busy": sum(ms for ms, *_ in rows), "longest": rows[:longest]}


def decoding(model, prompts: list[list[int]], args: Args) -> dict:
    """Milliseconds of a call of `sample`, of reading its prompts, and of one recorded step; the step's kernels."""
    tokenizer = SimpleNamespace(eos_token_id=model.config.vocab_size - 1, pad_token_id=0)
    ids, mask = pad(prompts, tokenizer, "cuda", "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def call():
        sample(model, prompts * 2, torch.rand(args.rows, args.response_tokens), tokenizer)

    def step():
        decoder.t.zero_(), decoder.column.fill_(decoder.width)
        decoder.graph.replay()

    call()
    (decoder,) = model.decoders.values()
    read = partial(model.base_model, ids, attention_mask=mask, position_ids=positions, use_cache=True)
    found = {"call": milliseconds(call), "prompts": milliseconds(read), "step": milliseconds(step, 20)}
    return found | kernels_of(step, args.longest)


def main(args: Args) -> None:
    if not torch.cuda.is_available():
        fail("this benchmark needs a GPU, and there is none")
    device = pick_device("cuda")
    torch.manual_seed(0)
    full = fuse(AutoModelForCausalLM.from_config(config_of(args.shape))).to(device).eval()
    half = copy.deepcopy(full).bfloat16()
    compiled = copy.deepcopy(half)
    compiled.compile(dynamic=False)
    vocabulary, results = full.config.vocab_size, {}
    lengths = [args.prompt_tokens // (1 + i % 2) for i in range(args.rows // 2)]
    prompts = [torch.randint(1, vocabulary - 1, (length,)).tolist() for length in lengths]
    for name, model in (("bf16", half), ("autocast", full), ("--compile", compiled)):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=name == "autocast"):
            results[name] = decoding(model, prompts, args)
        model.decoders.clear()
    ids = torch.randint(0, vocabulary, (args.train_rows, args.prompt_tokens + args.response_tokens), device=device)
    batch = Batch(ids, (torch.arange(ids.shape[1], device=device) >= args.prompt_tokens).expand_as(ids))

    def train():
        with torch.autocast("cuda", torch.bfloat16):
            sequence_logprob(full, batch).sum().backward()
        full.zero_grad()

    train()
    results["training pass"] = {"step": milliseconds(train)} | kernels_of(train, args.longest)
    for name, found in results.items():
        times = ", ".join(f"{part} {found[part]:.2f} ms" for part in ("call", "prompts", "step") if part in found)
        print(f"{name}: {times}; {found['kernels']} kernels busy for {found['busy']:.2f} ms")
        for ms, count, kernel in found["longest"]:
            print(f"    {ms:8.3f} ms {count:5} x {kernel}")
    machine = {"machine": torch.cuda.get_device_name()}
    versions = {package: version(package) for package in ("torch", "transformers")}
    print(json.dumps({"results": results, **machine, "versions": versions, "arguments": asdict(args)}))


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
