"""Running the experiments: a job is one command, made once; a finished run leaves a small file.

    python -m paper run frontier coverage --jobs 2 --limit-hours 2

It prints an estimate, then makes what is missing: setups, runs and what lies between them. Ended at
any moment, the same call continues. A finished run becomes paper/results/QUESTION/NAME.json, which
is committed; of its folder only what other jobs read is kept. So a later call, on another machine
too, continues from those files.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import torch

from common import cut_back, fail, wins
from paper.frontier import Run, ground_truth_scores, json_rows, load_runs

RESULTS = Path("paper/results")
WORK = Path("runs/paper")
# Seconds on one of two shared cores of a server: at a step, at an evaluation, to begin, for a setup
SECONDS = {"offline": 0.11, "online": 0.18, "hybrid": 0.15}
EVALUATION, BEGIN, SETUP = 2.2, 8, 200
# One thread, and no AVX-512: with it torch's softmax rounds differently, and after some steps other
# texts are sampled. No GPU: its numbers are others.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ATEN_CPU_CAPABILITY": "avx2"}
ENVIRONMENT |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

# Steps of evaluations: dense early, where a run moves fastest. The last step is added.
EVAL_AT = (5, 10, 20, 40, 80, 120, 160, 240, 320, 400, 560, 800, 1000, 1200, 1600)
SHORT = 400  # steps of most secondary runs; of a longer run's saved pairs those of its first SHORT


@cache
def revision() -> str:
    """One hash of the code that numbers follow from: the scripts, common.py and prepare/."""
    files = [*Path().glob("*_*line.py"), Path("ipo_hybrid.py"), Path("common.py")]
    files += Path("prepare").glob("*.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:10]


@dataclass(frozen=True)
class Job:
    """`python WORDS --out FOLDER`. Equal jobs of several questions are one."""

    name: str
    words: tuple[str, ...]
    question: str = ""  # where its result is kept; "": it has none, and is made for others alone
    needs: tuple["Job", ...] = ()  # whose folders it reads
    keeps: tuple[str, ...] = ()  # what others read of its folder
    seconds: float = 0  # an estimate, without
    steps: float = 0  # gradient steps of a run, counted as steps of the reviews task's own policy

    @property
    def folder(self) -> Path:
        return WORK / revision() / self.name

    @property
    def result(self) -> Path:
        return RESULTS / self.question / f"{self.name}.json"

    @property
    def done(self) -> bool:
        return self.result.exists() if self.question else self.there

    @property
    def there(self) -> bool:
        """Whether it has left what others read."""
        parts = all((self.folder / part).exists() for part in self.keeps or ("",))
        return parts and (not self.question or self.result.exists())

    @property
    def side(self) -> str:
        """Online, offline or hybrid; "" of what is no run of a script."""
        return self.words[0].removesuffix(".py").partition("_")[2]


def setup(name: str, seed: int, *words, needs=(), seconds: float = SETUP) -> Job:
    """A setup by `python -m prepare`. It is whole when its last stage is there, one of two."""
    words = tuple(map(str, ("-m", "prepare", "--seed", seed, *words)))
    return Job(name, words, "", tuple(needs), ("proxy", "baseline"), seconds)


def stage(name: str, *words, needs=(), seconds: float, question: str = "") -> Job:
    """What stages.py makes, beside runs and setups."""
    words = tuple(map(str, ("-m", "paper.stages", *words)))
    return Job(name, words, question, tuple(needs), (), seconds)


def run(question, name, script, setup, seed, steps, *words, needs=(), keeps=(), cost=1) -> Job:
    """A run of a script from a setup. cost: of a step, where the reviews task's own policy is 1."""
    at = [step for step in EVAL_AT if step < steps]
    told = (f"{script}.py", "--setup", setup.folder, "--seed", seed, "--steps", steps)
    told = map(str, (*told, "--eval-every", steps, "--eval-at", *at, *words))
    spent = BEGIN + (len(at) + 2) * EVALUATION * cost, steps * cost
    return Job(name, tuple(told), question, (setup, *needs), tuple(keeps), *spent)


# --------------------------------------------------------------- what is kept of a finished run


def evaluation(run: Run, row: dict) -> dict:
    """What is kept of an evaluation: its row, win rates on either half of the prompts, so that one
    can choose and the other measure, and three responses.

    "reach": the share of responses whose ground-truth score is at least the baseline's median.
    """
    answers = [answer for answer in run.answers(row["step"]) if answer["split"] == "train"]
    won = {}
    for by, column in (("golden", "win_rate_margin"), ("proxy", "proxy_win_rate_margin")):
        if column in answers[0]:
            won[by] = wins(torch.tensor([answer[column] for answer in answers]))
    found, kept = ground_truth_scores(run, row["step"]), {}
    if found is not None:
        _, ours, baseline = found
        won["truth"] = wins(ours - baseline)
        kept["reach"] = (ours >= baseline.median()).double().mean().item()
    kept |= {by: [some[half::2].mean().item() for half in (0, 1)] for by, some in won.items()}
    row = {name: value for name, value in row.items() if name not in ("samples", "baseline")}
    return row | kept | {"responses": [answer["response"] for answer in answers[:3]]}


def compact(job: Job) -> dict:
    """A finished run as its result: arguments without paths, revision, evaluations."""
    (run,) = load_runs((str(job.folder),))
    paths = {"out", "setup", "id", "model", "dataset", "proxy", "golden", "baseline"}
    prompts = [row["prompt"] for row in run.answers(0) if row["split"] == "train"]
    spent = [row["seconds"] for row in json_rows(job.folder / "timings.jsonl")]
    result = {
        "command": " ".join(word.removeprefix(f"{job.folder.parent}/") for word in job.words),
        "seconds_a_step": sum(spent) / job.steps,
        "prompts": [len(prompts[half::2]) for half in (0, 1)],
        "args": {name: value for name, value in run.args.items() if name not in paths},
        "first_prompts": prompts[:3],
        "evals": [evaluation(run, row) for row in run.evals],
    }
    return json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 5))


def keep(job: Job) -> None:
    """Write a finished job's result, and remove of its folder what no other job reads."""
    result = {"name": job.name, "revision": revision()}
    result |= compact(job) if job.side else json.loads((job.folder / "result.json").read_text())
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    if "evals" in result:  # a line an evaluation
        rows = ",\n".join(map(json.dumps, result["evals"]))
        lines[list(result).index("evals")] = f'"evals": [\n{rows}\n]'
    if "online_pairs" in job.keeps:
        cut_back(job.folder / "online_pairs/train.jsonl", SHORT)
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.with_suffix(".partial").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    job.result.with_suffix(".partial").replace(job.result)
    for path in [path for path in job.folder.rglob("*") if path.is_file()]:
        if not any(path.is_relative_to(job.folder / part) for part in job.keeps):
            path.unlink()
    if not job.keeps:
        shutil.rmtree(job.folder)


# ------------------------------------------------------------------------------------- making them


def plan(jobs: Iterable[Job]) -> list[Job]:
    """The jobs that are to be made, each behind what it reads."""
    order: dict[Job, None] = {}

    def add(job: Job) -> None:
        for need in job.needs:
            if not need.there:
                add(need)
        order.setdefault(job)

    for job in jobs:
        if not job.done:
            add(job)
    return list(order)


def measured() -> dict[str, float]:
    """{side: seconds a step}, of finished runs where there are some, else the constants."""
    found: dict[str, list[float]] = {side: [] for side in SECONDS}
    for path in RESULTS.rglob("*.json"):
        result = json.loads(path.read_text())
        if "seconds_a_step" in result:
            found[result["args"]["script"].partition("_")[2]].append(result["seconds_a_step"])
    return {side: mean(spent) if spent else SECONDS[side] for side, spent in found.items()}


def estimate(jobs: Iterable[Job], seconds: dict[str, float] = SECONDS) -> float:
    """Core-hours."""
    return sum(job.seconds + job.steps * seconds.get(job.side, 0) for job in jobs) / 3600


def start(job: Job) -> subprocess.Popen:
    resume = ["--resume"] if job.side else []
    words = [sys.executable, *job.words, *resume, "--out", str(job.folder)]
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{job.folder}.log", "a") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)


def make(jobs: Iterable[Job], workers: int = 2, hours: float = float("inf")) -> None:
    """Make the jobs that are missing, `workers` at a time, and end after `hours`.

    Where one fails, those that need it are left out, and the program ends with a line.
    """
    waiting, running, failed, began = plan(jobs), {}, [], time.time()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended; the same call continues"))
    count, code = len(waiting), revision()
    try:
        while waiting or running:
            blocked = {*waiting, *running, *failed}
            ready = [job for job in waiting if blocked.isdisjoint(job.needs)]
            for job in ready[: workers - len(running)]:
                if revision.__wrapped__() != code:
                    fail("the code has changed since this call began; repeat it")
                waiting.remove(job)
                running[job] = start(job), time.time()
            if not running:
                break  # what waits needs a job that failed
            time.sleep(0.1)
            if time.time() - began > 3600 * hours:
                print(f"{hours:g} hours are over; the same call continues")
                return
            for job, (process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                if process.returncode:
                    failed.append(job)
                    print(f"{job.name}: exit code {process.returncode}, see {job.folder}.log")
                    continue
                if job.question:
                    keep(job)
                place = f"{count - len(waiting) - len(running)} of {count}"
                print(f"{place}: {job.name}, {time.time() - since:.0f} s", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.wait()
    if failed:
        fail(f"{len(failed)} jobs failed, {len(waiting)} wait for them; the same call tries again")
