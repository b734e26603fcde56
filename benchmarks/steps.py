"""A whole training step against TRL's: the same weights, prompts, lengths and batch, a reward that is not timed.

    pip install "trl==1.16.0"
    python benchmarks/steps.py                                                       # the embedded world
    python benchmarks/steps.py --start starts/mine --device cuda --precision bf16 --max-prompt-tokens 512 ...

Both sides run as processes of their own, in turn, --rounds times. Ours is the script, by its command line: a step is
what timings.jsonl calls time/sample plus time/train, without the judge. TRL's is OnlineDPOTrainer or DPOTrainer with loss_type
"ipo", timed by a callback; what it samples is judged by the length of the text, which costs nothing. The learning rate is so
small that neither policy moves, or each would write as long as its judge likes. The first --skip steps of every run are left
out. Peak memory is what CUDA allocated, ours with the judge, on a CPU what the process occupied, models, data and libraries
included. A side that fails is told, and the others go on. The last line printed is JSON.
"""

import importlib.util
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import fail, load_rows, run_command  # noqa: E402


@dataclass
class Args:
    start: str = "starts/reviews"
    """folder made by `python -m prepare`"""
    sides: tuple[Literal["online", "offline"], ...] = ("online", "offline")
    """online: ipo_online.py against OnlineDPOTrainer; offline: ipo_offline.py against DPOTrainer"""
    steps: int = 40
    """steps of each run"""
    skip: int = 5
    """first steps that are not counted"""
    rounds: int = 3
    """runs of each side, in turn"""
    threads: int = 1
    """OMP_NUM_THREADS of each run: cores that nothing else uses"""
    batch_size: int = 32
    """pairs a step"""
    gradient_accumulation_steps: int = 2
    """of our side; TRL's takes the batch in one part"""
    learning_rate: float = 1e-12
    """the same on both sides; AdamW takes its steps, and no weight changes"""
    beta: float = 0.1
    """the same on both sides"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens"""
    max_response_tokens: int = 33
    """longest response, in tokens"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where both sides run"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast over fp32 weights on both sides"""


SHARED = ("steps", "batch_size", "learning_rate", "beta", "max_prompt_tokens", "max_response_tokens", "device", "precision")


def run(command: list[str], threads: int) -> tuple[str, int]:
    """What a command prints, and the most memory that it occupied, in bytes; CalledProcessError where it fails."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    env |= {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}  # ours goes without cuDNN's attention, so TRL's does too
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *map(str, command)], env=env, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            errors.seek(0)
            raise subprocess.CalledProcessError(code, command, stderr=errors.read())
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024


def ours(args: Args, side: str, folder: str) -> tuple[list[float], list[float], int]:
    """Seconds of each step, without the judge; tokens of its mean response; peak memory in bytes: of the script."""
    flags = {name: getattr(args, name) for name in (*SHARED, "gradient_accumulation_steps")}
    flags |= {"model": f"{args.start}/sft", "dataset": f"{args.start}/d_golden"}
    flags |= {"judge": f"{args.start}/proxy"} if side == "online" else {}
    flags |= {"out": folder, "eval_every": args.steps, "eval_prompts": 8, "kl_prompts": 8}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    _, occupied = run([HERE.parent / f"ipo_{side}.py", *words], args.threads)
    rows = [json.loads(line) for line in open(Path(folder, "timings.jsonl"))]
    seconds = [row["time/sample"] + row["time/train"] for row in rows]
    written = [row["tokens_per_second"] * (s + row["time/label"]) for row, s in zip(rows, seconds)]
    return seconds, [tokens / 2 / args.batch_size for tokens in written], rows[-1]["peak_memory_bytes"] or occupied


def trl(args: Args, side: str, folder: str) -> tuple[list[float], list[float], int]:
    """The same of TRL's trainer; tokens only where it samples."""
    rows = Path(folder, "rows.jsonl")
    told = {name: getattr(args, name) for name in SHARED}
    told |= {"side": side, "model": f"{args.start}/sft", "rows": str(rows), "out": folder}
    pairs = load_rows(f"{args.start}/d_golden")[: args.batch_size * args.steps]
    rows.write_text(
        "".join(json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")}) + "\n" for row in pairs)
    )
    printed, occupied = run([HERE / "trl_steps.py", json.dumps(told)], args.threads)
    measured = json.loads(printed.splitlines()[-1])
    return measured["seconds"], measured["tokens"], measured["memory"] or occupied


def main(args: Args) -> None:
    if not importlib.util.find_spec("trl"):
        fail('this benchmark needs TRL: pip install "trl==1.16.0"')
    if not Path(args.start, "d_golden").is_dir():
        fail(f"--start {args.start}: no such start; python -m prepare --out {args.start} makes it")
    results = {}
    for side in args.sides:
        sides = {name: {"seconds": [], "tokens": [], "memory": []} for name in ("ours", "trl")}
        for _ in range(args.rounds):
            for name, function in (("ours", ours), ("trl", trl)):
                if "failed" in sides[name]:
                    continue
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        steps, tokens, peak = function(args, side, str(Path(folder, "run")) if name == "ours" else folder)
                except subprocess.CalledProcessError as error:
                    sides[name]["failed"] = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1][:200]
                    continue
                sides[name]["seconds"].append(statistics.median(steps[args.skip :]))
                sides[name]["tokens"] += tokens[args.skip :]
                sides[name]["memory"].append(peak)
        results[side] = sides
        for name, found in sides.items():
            if "failed" in found:
                print(f"{side}, {name}: {found['failed']}", flush=True)
                continue
            seconds, gigabytes = found["seconds"], statistics.median(found["memory"]) / 2**30
            spread = f"{statistics.median(seconds):.4f} s ({min(seconds):.4f} to {max(seconds):.4f}), {gigabytes:.2f} GiB"
            length = f", {statistics.mean(found['tokens']):.1f} tokens a response" if found["tokens"] else ""
            print(f"{side}, {name}: {spread}{length}", flush=True)
        if not any("failed" in found for found in sides.values()):
            ratios = [theirs / own for own, theirs in zip(*(found["seconds"] for found in sides.values()))]
            sides["ratio"] = statistics.median(ratios)
            print(f"{side}: {sides['ratio']:.2f} times faster", flush=True)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.processor() or platform.machine()}, CPU"
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    print(json.dumps({"results": results, "machine": machine, "versions": versions, "arguments": asdict(args)}))


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
