"""A whole training step against TRL's: the same weights, prompts, lengths and batch, a reward that is not timed.

    pip install "trl==1.16.0"
    python benchmarks/steps.py                                                       # the reviews task
    python benchmarks/steps.py --shape smollm2-135m --device cuda --precision bf16 --max-prompt-tokens 128 \
        --max-response-tokens 128                                                    # on a GPU; random weights and words

Both sides run as processes of their own, in turn, --rounds times. Ours is the script, by its command line: a step is
what timings.jsonl calls time/sample plus time/train, without the preference model. TRL's is OnlineDPOTrainer or DPOTrainer
with loss_type "ipo", timed by a callback; what it samples is judged by the length of the text, which costs nothing. The
learning rate is so small that neither policy moves, or each would write as long as its preference model likes. The first
--skip steps of every run are left out. Peak memory is what CUDA allocated, ours with the preference model, on a CPU what the
process occupied, models, data and libraries included. A side that fails is told, and the others go on. The last line printed
is JSON.
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

from benchmarks.shapes import make_setup  # noqa: E402
from common import fail, load_rows, run_command  # noqa: E402


@dataclass
class Args:
    setup: str = "setups/reviews"
    """folder made by `python -m prepare`"""
    shape: Literal["smollm2-135m", "pythia-410m"] | None = None
    """instead of a setup: random weights in this shape, and random words as long as the limits let them be"""
    sides: tuple[Literal["online", "offline"], ...] = ("online", "offline")
    """online: ipo_online.py against OnlineDPOTrainer; offline: ipo_offline.py against DPOTrainer"""
    trl: bool = True
    """run TRL's side too"""
    compile: bool = False
    """of our side, online: compile the decoding step"""
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


SHARED = (
    "steps",
    "batch_size",
    "learning_rate",
    "beta",
    "max_prompt_tokens",
    "max_response_tokens",
    "device",
    "precision",
)


def run(command: list[str], threads: int) -> tuple[str, int]:
    """What a command prints, and the most memory that it occupied, in bytes; CalledProcessError where it fails."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    env |= {
        "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"
    }  # ours goes without cuDNN's attention, so TRL's does too
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], env=env, stdout=out, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            errors.seek(0)
            raise subprocess.CalledProcessError(code, command, stderr=errors.read())
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024


def ours(args: Args, setup: str, side: str, folder: str) -> dict:
    """Of each step its seconds without labelling, those of its parts, tokens of its mean response; peak memory in bytes."""
    flags = {name: getattr(args, name) for name in (*SHARED, "gradient_accumulation_steps")}
    flags |= {"model": f"{setup}/sft", "dataset": f"{setup}/d_golden"}
    flags |= {"proxy": f"{setup}/proxy"} if side == "online" else {}
    flags |= {"out": folder, "eval_every": args.steps, "eval_prompts": 8, "kl_prompts": 8}
    words = [
        word
        for name, value in flags.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    words += ["--compile"] if args.compile and side == "online" else []
    _, occupied = run([HERE.parent / f"ipo_{side}.py", *words], args.threads)
    rows = [json.loads(line) for line in open(Path(folder, "timings.jsonl"))]
    parts = {part: [row[f"time/{part}"] for row in rows] for part in ("sample", "label", "train")}
    seconds = [sampled + trained for sampled, trained in zip(parts["sample"], parts["train"])]
    written = [
        row["tokens_per_second"] * sum(each) for row, each in zip(rows, zip(*parts.values()))
    ]
    tokens = [count / 2 / args.batch_size for count in written]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "memory": rows[-1]["peak_memory_bytes"] or occupied,
        "parts": parts,
    }


def trl(args: Args, setup: str, side: str, folder: str) -> dict:
    """The same of TRL's trainer; tokens only where it samples, and no parts."""
    rows = Path(folder).parent / "rows.jsonl"
    told = {name: getattr(args, name) for name in SHARED}
    told |= {"side": side, "model": f"{setup}/sft", "rows": str(rows), "out": folder}
    pairs = load_rows(f"{setup}/d_golden")[: args.batch_size * args.steps]
    rows.write_text(
        "".join(
            json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")}) + "\n"
            for row in pairs
        )
    )
    printed, occupied = run([HERE / "trl_steps.py", json.dumps(told)], args.threads)
    measured = json.loads(printed.splitlines()[-1])
    return measured | {"memory": measured["memory"] or occupied}


def compare(args: Args, setup: str) -> dict:
    """What main prints and returns, of the models and pairs in `setup`."""
    results = {}
    for side in args.sides:
        sides = {
            name: {"seconds": [], "tokens": [], "memory": []}
            for name in (("ours", "trl") if args.trl else ("ours",))
        }
        sides["ours"]["parts"] = {"sample": [], "label": [], "train": []}
        for _ in range(args.rounds):
            for name, found in sides.items():
                function = ours if name == "ours" else trl
                if "failed" in found:
                    continue
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        measured = function(args, setup, side, f"{folder}/run")
                except subprocess.CalledProcessError as error:
                    found["failed"] = (
                        error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
                    )[-1][:200]
                    continue
                found["seconds"].append(statistics.median(measured["seconds"][args.skip :]))
                found["tokens"] += measured["tokens"][args.skip :]
                found["memory"].append(measured["memory"])
                for part, seconds in measured.get("parts", {}).items():
                    found["parts"][part].append(statistics.median(seconds[args.skip :]))
        results[side] = sides
        for name, found in sides.items():
            if "failed" in found:
                print(f"{side}, {name}: {found['failed']}", flush=True)
                continue
            seconds, gigabytes = found["seconds"], statistics.median(found["memory"]) / 2**30
            spread = f"{statistics.median(seconds):.4f} s ({min(seconds):.4f} to {max(seconds):.4f}), {gigabytes:.2f} GiB"
            length = (
                f", {statistics.mean(found['tokens']):.1f} tokens a response"
                if found["tokens"]
                else ""
            )
            parts = "".join(
                f", {part} {statistics.median(each):.4f}"
                for part, each in found.get("parts", {}).items()
            )
            print(f"{side}, {name}: {spread}{length}{parts}", flush=True)
        if args.trl and not any("failed" in found for found in sides.values()):
            ratios = [
                theirs / own for own, theirs in zip(*(found["seconds"] for found in sides.values()))
            ]
            sides["ratio"] = statistics.median(ratios)
            print(f"{side}: {sides['ratio']:.2f} times faster", flush=True)
    return results


def main(args: Args) -> None:
    if args.trl and not importlib.util.find_spec("trl"):
        fail('this benchmark needs TRL: pip install "trl==1.16.0"; --no-trl goes without')
    with tempfile.TemporaryDirectory() as folder:
        setup = args.setup
        if args.shape:
            setup = folder
            make_setup(
                setup,
                args.shape,
                args.batch_size * args.steps,
                args.max_prompt_tokens,
                args.max_response_tokens,
            )
        elif not Path(setup, "d_golden").is_dir():
            fail(f"--setup {setup}: no such setup; python -m prepare --out {setup} makes it")
        results = compare(args, setup)
    machine = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{platform.processor() or platform.machine()}, CPU"
    )
    versions = {
        name: version(name) for name in ("torch", "transformers", *(["trl"] if args.trl else []))
    }
    print(
        json.dumps(
            {
                "results": results,
                "machine": machine,
                "versions": versions,
                "arguments": asdict(args),
            }
        )
    )


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
