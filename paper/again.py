"""Are the kept results those of today's code? The first steps of one kept run of each script, made again and compared.

The start of the seed is made anew, every stage, then 40 steps of each script; `metrics.jsonl` must be what it was when the
results were kept, to the bit: losses, log-probabilities, gradient norms. They are, on an AMD EPYC without AVX-512 and on
another with it, which jobs do not use; on a CPU of another maker the last digits may differ, and then the sampled texts.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from common import check_ranges, fail
from paper.compare import table_of
from paper.findings import EXPERIMENTS
from paper.jobs import BEGINNING, WORLDS, Job, World, make, read


@dataclass
class Args:
    seed: int = 1
    """whose results are checked"""
    jobs: int = 1
    """processes at a time, one thread each"""
    runs: str = "runs/paper"
    """folder of the runs"""
    results: str = "docs/results"
    """folder of the kept results"""


def first_steps(job: Job) -> Job:
    """A run's first steps; fewer evaluation prompts change no training step."""
    few = {"steps": min(BEGINNING, job.options["steps"]), "eval_every": BEGINNING, "eval_prompts": 8, "kl_prompts": 8}
    return replace(job, label=f"{job.label}__again", options=job.options | few)


def main(args: Args) -> None:
    check_ranges(args, zero=("seed",))
    world = World(**{**vars(WORLDS["reviews"]), "runs": args.runs, "results": args.results})
    kept = {}
    for experiment in EXPERIMENTS.values():
        for job in experiment.jobs(world, args.seed):
            if job.is_run and job.result.exists():
                kept.setdefault(job.module, job)
    if not kept:
        fail(f"{args.results}: has no results of seed {args.seed}")
    again = {script: first_steps(job) for script, job in kept.items()}
    make(list(again.values()), args.jobs, results=False)
    rows, others = [], []
    for script, job in kept.items():
        lines = Path(again[script].folder, "metrics.jsonl").read_bytes().splitlines()
        same = hashlib.sha256(b"\n".join(lines)).hexdigest() == read(job)["metrics"]["first"]
        rows.append([script, str(len(lines)), job.result.name, "equal to the bit" if same else "other numbers"])
        others += [script] * (not same)
    print(table_of(["script", "steps", "kept in", "made again"], rows))
    if others:
        fail(f"{', '.join(others)}: today's code, or this machine, does not give the numbers that are kept")
