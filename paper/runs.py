"""Running the experiments: a job is one command, made once.

A finished run becomes paper/results/QUESTION/NAME.json, which is committed, and a later call, on
another machine too, continues from there. Its folder is kept only where other jobs read it.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from common import cut_back, fail, wins
from paper.frontier import MARKERS, Run, ground_truth_scores, json_rows, load_runs

RESULTS = Path("paper/results")
WORK = Path("runs/paper")
# Seconds on one of two shared cores of a server: at a step, at an evaluation, to begin, for a setup
SECONDS = {"offline": 0.11, "online": 0.18, "hybrid": 0.15}
EVALUATION, BEGIN, SETUP = 2.2, 8, 200
# One thread, and no AVX-512: with it torch's softmax rounds differently, and after some steps other
# texts are sampled. No GPU: its numbers are others.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ATEN_CPU_CAPABILITY": "avx2"}
ENVIRONMENT |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# A reader's script lies in any folder: it finds a common.py beside it, else ours
PATHS = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")
ENVIRONMENT |= {"PYTHONPATH": os.pathsep.join(filter(None, PATHS))}
SCRIPTS = "ipo_hybrid.py", "rloo_online.py"
SCRIPTS += tuple(f"{loss}_{side}.py" for loss in MARKERS for side in ("offline", "online"))

# Steps of evaluations: dense early, where a run moves fastest. The last step is added.
EVAL_AT = (5, 10, 20, 40, 80, 120, 160, 240, 320, 400, 560, 800, 1000, 1200, 1600)
SHORT = 400  # steps of most secondary runs; of a longer run's saved pairs those of its first SHORT
# Code with the numbers of the code that made the results: {its hash: the other}. Shown, to the bit,
# on the first 80 steps of one run of each script.
SAME = {"3f7954c737": "e6dd738848"}


@dataclass(frozen=True)
class Job:
    """`python WORDS --out FOLDER`. Equal jobs of several questions are one."""

    name: str
    words: tuple[str, ...]
    question: str = ""  # where its result is kept; "": it has none, and is made for others alone
    needs: tuple["Job", ...] = ()  # whose folders it reads
    seconds: float = 0  # an estimate, of one core
    steps: float = 0  # of a run, counted as steps of the reviews task's own policy
    keeps: tuple[str, ...] = ()  # what others read of its folder
    home: Path | None = None  # of a reader's run: its folder and its result lie here

    @property
    def folder(self) -> Path:
        return (self.home or WORK / revision()) / self.name

    @property
    def result(self) -> Path:
        return (self.home or RESULTS / self.question) / f"{self.name}.json"

    @property
    def done(self) -> bool:
        return self.result.exists() if self.question else self.there

    @property
    def there(self) -> bool:
        """Whether it has left what others read."""
        parts = all((self.folder / part).exists() for part in self.keeps or ("",))
        return parts and (not self.question or self.result.exists())


def source(jobs: Iterable[Job] = ()) -> str:
    """One hash of the code that numbers follow from: ours, and the scripts that the jobs run."""
    files = {*map(Path, (*SCRIPTS, "common.py")), *Path("prepare").glob("*.py")}
    files |= {Path(job.words[0]) for job in jobs if job.steps}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:10]


@cache
def revision() -> str:
    """The name of our code in results."""
    return SAME.get(source(), source())


def setup(name: str, seed: int, *words, needs=(), seconds: float = SETUP) -> Job:
    """A setup by `python -m prepare`. It is whole when its last stage is there, one of two."""
    words = "-m", "prepare", "--seed", seed, *words
    return Job(name, tuple(map(str, words)), "", needs, seconds, keeps=("proxy", "baseline"))


def stage(name: str, *words, needs=(), seconds: float, question: str = "") -> Job:
    """What stages.py makes, beside runs and setups."""
    words = tuple(map(str, ("-m", "paper.stages", *words)))
    return Job(name, words, question, needs, seconds)


def run(question, name, script, setup, seed, steps, *words, needs=(), cost=1, **kept) -> Job:
    """A run of a script from a setup. cost: of a step, where the reviews task's own policy is 1."""
    at = [step for step in EVAL_AT if step < steps]
    told = (f"{script}.py", "--setup", setup.folder, "--seed", seed, "--steps", steps)
    told = map(str, (*told, "--eval-every", steps, "--eval-at", *at, *words))
    a_step = SECONDS.get(script.rpartition("_")[2], SECONDS["online"])  # a reader's has any name
    spent = BEGIN + ((len(at) + 2) * EVALUATION + steps * a_step) * cost, steps * cost
    return Job(f"{seed}__{name}", tuple(told), question, (setup, *needs), *spent, **kept)


# --------------------------------------------------------------- what is kept of a finished run


def evaluation(run: Run, row: dict) -> dict:
    """What is kept of an evaluation: its row, win rates on either half of the prompts, so that one
    can choose and the other measure, and three responses.

    "reach": the share of responses whose ground-truth score is at least the baseline's median.
    """
    answers = [answer for answer in run.answers(row["step"]) if answer["split"] == "train"]
    won = {"golden": wins(torch.tensor([answer["win_rate_margin"] for answer in answers]))}
    row = {name: value for name, value in row.items() if name not in ("samples", "baseline")}
    prompts, ours, baseline = ground_truth_scores(run, row["step"])
    if prompts:
        won["truth"] = wins(ours - baseline)
        row["reach"] = (ours >= baseline.median()).double().mean().item()
    row |= {by: [some[half::2].mean().item() for half in (0, 1)] for by, some in won.items()}
    return row | {"responses": [answer["response"] for answer in answers[:3]]}


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
    """Write a finished job's result, and remove its folder where no other job reads it."""
    result = {"name": job.name, "revision": revision()}
    result |= compact(job) if job.steps else json.loads((job.folder / "result.json").read_text())
    if "online_pairs" in job.keeps:
        cut_back(job.folder / "online_pairs/train.jsonl", SHORT)
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.with_suffix(".partial").write_text(json.dumps(result) + "\n")
    job.result.with_suffix(".partial").replace(job.result)
    if not job.keeps:
        shutil.rmtree(job.folder)


# ------------------------------------------------------------------------------------- making them


def plan(jobs: Iterable[Job]) -> list[Job]:
    """The jobs that are to be made, each behind what it reads."""

    def with_needs(job: Job) -> Iterator[Job]:
        for need in job.needs:
            if not need.there:
                yield from with_needs(need)
        yield job

    return list(dict.fromkeys(one for job in jobs if not job.done for one in with_needs(job)))


def start(job: Job) -> subprocess.Popen:
    resume = ["--resume"] if job.steps else []
    words = [sys.executable, *job.words, *resume, "--out", str(job.folder)]
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{job.folder}.log", "a") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)


def last_line(log: str) -> str:
    """What a program said last, beside its progress."""
    lines = Path(log).read_text(errors="replace").splitlines()
    return next((x for x in reversed(lines) if x.strip() and "%|" not in x), "").strip()


def make(jobs: Iterable[Job], workers: int = 2) -> None:
    """Make the jobs that are missing, `workers` at a time.

    Where one fails, those that need it are left out, and the program ends with a line.
    """
    planned, running, failed = plan(jobs), {}, []
    waiting, code = list(planned), source(planned)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended; the same call continues"))
    try:
        while waiting or running:
            blocked = {*waiting, *running, *failed}
            ready = [job for job in waiting if blocked.isdisjoint(job.needs)]
            for job in ready[: workers - len(running)]:
                if source(planned) != code:
                    fail("the code has changed since this call began; repeat it")
                waiting.remove(job)
                running[job] = start(job), time.time()
            if not running:
                break  # what waits needs a job that failed
            time.sleep(0.1)
            ended = [job for job, (process, _) in running.items() if process.poll() is not None]
            for job in ended:
                process, since = running.pop(job)
                if process.returncode:
                    failed.append(job)
                    told = f"exit code {process.returncode}: {last_line(f'{job.folder}.log')}"
                    print(f"{job.name}: {told} (see {job.folder}.log)", flush=True)
                    continue
                if job.question:
                    keep(job)
                place = f"{len(planned) - len(waiting) - len(running)} of {len(planned)}"
                print(f"{place}: {job.name}, {time.time() - since:.0f} s", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.wait()
    if failed:
        fail(f"{len(failed)} jobs failed, {len(waiting)} wait for them; the same call tries again")
