"""Where a step's time goes (sample, label, train), and how each part grows with the batch, the length and the model.

    python benchmarks/growth.py                              # the embedded world on a CPU
    python benchmarks/growth.py --start starts/mine --max-prompt-tokens 512 --max-response-tokens 512 --device cuda

Each variant is ipo_online.py by its command line for --steps steps, --rounds times in turn; the first --skip steps are not
counted. What is longer, larger or more than in the start's own run is random text or random weights: only the time is looked
at. The last line is JSON.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import tyro
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import fail  # noqa: E402

PARTS = ("time/sample", "time/label", "time/train")
TOLD = ("start", "steps", "max_prompt_tokens", "max_response_tokens", "device", "precision", "gradient_accumulation_steps")


@dataclass
class Args:
    start: str = "starts/reviews"
    """folder made by `python -m prepare`"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens, as the start was prepared with"""
    max_response_tokens: int = 33
    """longest response, in tokens, likewise; one variant has twice as many"""
    steps: int = 40
    """steps of each run"""
    skip: int = 5
    """first steps that are not counted"""
    rounds: int = 3
    """runs of each variant, in turn"""
    threads: int = 1
    """OMP_NUM_THREADS of each run: cores that nothing else uses"""
    device: str = "cpu"
    """where it runs"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 samples and trains under autocast"""
    gradient_accumulation_steps: int = 2
    """parts of a batch"""


def endless(source: str, folder: str, times: int) -> str:
    """A model `times` as wide as the source, with random weights: its responses end by chance alone, most are cut."""
    config = AutoConfig.from_pretrained(source)
    for size in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if hasattr(config, size):  # GPT-NeoX has as many keys as heads, and no name for it
            setattr(config, size, times * getattr(config, size))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def main(args: Args) -> None:
    if not Path(args.start, "proxy").is_dir():
        fail(f"--start {args.start}: no such start; python -m prepare --out {args.start} makes it")
    with tempfile.TemporaryDirectory() as folder:
        random = {"model": endless(f"{args.start}/sft", f"{folder}/random", 1)}
        twice = {"model": endless(f"{args.start}/sft", f"{folder}/twice", 2)}
        variants = {
            "the start's policy": {},
            "batch 16": {"batch_size": 16},
            "batch 64": {"batch_size": 64},
            "batch 128": {"batch_size": 128},
            "random weights": random,
            "random weights, twice the limit": random | {"max_response_tokens": 2 * args.max_response_tokens},
            "random weights, twice as wide": twice,
        }
        seconds = {name: {part: [] for part in PARTS} for name in variants}
        for i in range(args.rounds):
            for name, options in variants.items():
                out = Path(folder, f"{name} {i}".replace(" ", "_"))
                told = {name: getattr(args, name) for name in TOLD}
                options = {"eval_every": args.steps, "out": out, "eval_prompts": 8, "kl_prompts": 8} | told | options
                words = [str(word) for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
                env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
                command = [sys.executable, str(HERE.parent / "ipo_online.py"), *words]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                if done.returncode:  # out of memory, say: the others go on
                    print(f"{name}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}", flush=True)
                    continue
                rows = [json.loads(line) for line in open(out / "timings.jsonl")][args.skip :]
                for part in PARTS:
                    seconds[name][part].append(statistics.median(row[part] for row in rows))
    seconds = {name: parts for name, parts in seconds.items() if parts[PARTS[0]]}
    for name, parts in seconds.items():
        cells = [f"{1000 * statistics.median(s):.1f} ({1000 * min(s):.1f} to {1000 * max(s):.1f})" for s in parts.values()]
        print(f"{name}: " + ", ".join(f"{part[5:]} {cell}" for part, cell in zip(parts, cells)) + " ms")
    name = torch.cuda.get_device_name() if args.device != "cpu" else f"{platform.processor() or platform.machine()}, CPU"
    versions = {package: version(package) for package in ("torch", "transformers")}
    print(json.dumps({"seconds": seconds, "machine": name, "versions": versions, "arguments": asdict(args)}))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
