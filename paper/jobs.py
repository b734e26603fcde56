"""What an experiment is made of: commands of this repository, named by their arguments, made once, several at a time.

A job leaves a folder, runs/paper/<world>-<seed>/<label>__<digest>, and other jobs may read parts of it. The digest follows
from all that its numbers follow from: arguments, code, and the jobs that it reads. What a figure needs of it is kept in
docs/results/<world>-<seed>/<label>.json.gz, so that figures can be drawn again where the folders are not.
"""

import ast
import gzip
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from threading import Event, Semaphore

import torch
from tqdm import tqdm

from common import fail, wins
from paper.frontier import load_run, rule_wins, train_rows

# Seconds on one of two cores of an AMD EPYC without AVX-512 for the embedded world, roughly: what is estimated with.
SECONDS = {"offline": 0.1, "online": 0.25, "hybrid": 0.2, "evaluation": 2, "start-up": 8}
BEGINNING = 40  # the first steps of some runs are run again with more evaluations
LOSS_WINDOW = 20  # steps whose mean loss is kept
OTHERS = {"prepare": 150, "prepare.sft": 40, "prepare.preference_model": 40, "prepare.pairs": 60}
OTHERS |= {"paper.classify": 15, "paper.turned": 5, "paper.rejudge": 30}
WITHOUT_EFFECT = ("save_stream", "save_policies", "jobs")  # on numbers
# One thread, and no AVX-512: with it torch's softmax and oneDNN's GELU round differently, and after some steps other texts
# are sampled.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@dataclass(frozen=True)
class World:
    """Data, models and sizes in which the experiments are made; what differs from the defaults of prepare and the scripts."""

    name: str
    prepare: dict = field(default_factory=dict)  # further arguments of python -m prepare
    run: dict = field(default_factory=dict)  # further arguments of every script, e.g. the limits of lengths
    steps: int = 400  # of an online run; the others' follow from it
    learning_rate: float = 5e-4
    # offline's sweep: (learning rate in defaults, beta), and how many times an online run's steps
    sweep: tuple[tuple[float, float], ...] = ((1, 0.1), (0.3, 0.1), (3, 0.1), (1, 0.5), (1, 1.0))
    times: int = 5
    experiments: tuple[str, ...] = ()  # that can be made in it; () = all
    runs: str = "runs/paper"
    results: str = "docs/results"

    def stage(self, name: str) -> dict:
        """The steps of a stage of prepare, for a job that makes it in another way; none where they are the default."""
        return {"steps": self.prepare[f"{name}_steps"]} if f"{name}_steps" in self.prepare else {}

    @property
    def limits(self) -> dict:
        """The arguments of every command that reads or writes texts."""
        return {name: value for name, value in self.run.items() if name.startswith("max_")}

    def start(self, seed: int, label: str = "start", **options) -> "Job":
        """The start of a seed, every stage anew; with other arguments of python -m prepare under another label."""
        return Job(self, seed, label, "prepare", self.prepare | options | {"seed": seed})


WORLDS = {
    "reviews": World("reviews"),
    "stories": World(
        "stories",
        prepare={
            "model": "../shared/models/stories260K",
            "dataset": "../shared/data/stories/pairs.jsonl.gz",
            "sft_steps": 0,
            "golden_steps": 500,
            "proxy_steps": 300,
            "policy_steps": 200,
            "policy_learning_rate": 1e-4,
            "max_prompt_tokens": 64,
            "max_response_tokens": 48,
            "on_bad_row": "skip",  # texts sampled with 48 tokens that are more when they are encoded again: a row in twelve
        },
        run={"max_prompt_tokens": 64, "max_response_tokens": 48},
        steps=200,
        learning_rate=1e-4,
        sweep=((1, 0.1), (0.3, 0.1), (3, 0.1)),
        times=2,
        experiments=("fig1", "fig4", "fig12", "rates", "longer"),
    ),
}


@dataclass(frozen=True)
class Part:
    """A file or folder that a job leaves, as an argument of another."""

    job: "Job"
    path: str = ""

    def __str__(self) -> str:
        return str(self.job.folder / self.path)


@cache
def code_of(module: str) -> list[str]:
    """Digests of the code that a command runs, which change when the code does, not when a comment or docstring does."""
    files = {Path("common.py"), Path(f"{module.replace('.', '/')}.py")}
    if module.partition(".")[0] == "prepare":
        files = {Path("common.py"), *Path("prepare").glob("*.py"), Path("ipo_online.py"), Path("ipo_offline.py")}
    return [digest_of(path.read_text()) for path in sorted(files) if path.exists()]


WITHOUT_MEANING = ("annotation", "returns", "type_params", "type_comment", "ctx", "kind")  # for what is computed


def digest_of(source: str) -> str:
    """Of what the code does: comments, docstrings, types and the Python version make no difference."""

    def plain(value):
        if isinstance(value, list):
            return [plain(v) for v in value if not (isinstance(v, ast.Expr) and isinstance(v.value, ast.Constant))]
        if not isinstance(value, ast.AST):
            return repr(value)
        fields = ((name, field) for name, field in ast.iter_fields(value) if name not in WITHOUT_MEANING)
        return [type(value).__name__, *([name, plain(field)] for name, field in fields if field not in (None, []))]

    return hashlib.sha256(json.dumps(plain(ast.parse(source))).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Job:
    """One command, `python -m MODULE ARGUMENTS --out FOLDER`."""

    world: World
    seed: int
    label: str  # unique among the jobs of a world and seed
    module: str
    options: dict  # its arguments; a Part, or a tuple of some, reads what another job leaves

    @property
    def key(self) -> tuple:
        return self.world.name, self.seed, self.label

    @property
    def needs(self) -> list["Job"]:
        """The jobs whose parts it reads."""
        values = [v for value in self.options.values() for v in (value if isinstance(value, tuple) else (value,))]
        return [value.job for value in values if isinstance(value, Part)]

    @cached_property
    def digest(self) -> str:
        def plain(value):
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            return [value.job.digest, value.path] if isinstance(value, Part) else value

        told = {name: plain(value) for name, value in self.options.items() if name not in WITHOUT_EFFECT}
        text = json.dumps([self.module, told, code_of(self.module)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def home(self) -> Path:
        return Path(self.world.runs, f"{self.world.name}-{self.seed}")

    @property
    def folder(self) -> Path:
        return self.home / f"{self.label}__{self.digest}"

    @property
    def result(self) -> Path:
        return Path(self.world.results, f"{self.world.name}-{self.seed}", f"{self.label}.json.gz")

    @property
    def is_run(self) -> bool:
        """Whether it is a run of one of the scripts, with evaluations."""
        return "_" in self.module.partition(".")[0]

    @property
    def arguments(self) -> list[str]:
        """The words of its command line behind `python -m`, but --out."""
        words = self.module.split(" ")
        for name, value in self.options.items():
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else (value,))]
        return words

    @property
    def seconds(self) -> float:
        """Its estimated time on one core, in the embedded world."""
        if not self.is_run:
            return OTHERS[self.module.split(" ")[0]]
        steps, every = self.options["steps"], self.options["eval_every"]
        times = 5 if self.options.get("model") else 1  # larger policies
        steps = steps * SECONDS[self.module.split("_")[1]] * times
        return steps + (1 + -(-steps // every)) * SECONDS["evaluation"] + SECONDS["start-up"]


def run_of(start: Job, script: str, label: str, steps: float = 1, eval_every: int | None = None, **options) -> Job:
    """A run of a script from a start; steps: as multiples of an online run's. Evaluated ten times, unless told otherwise."""
    world = start.world
    steps = round(steps * world.steps)
    told = {"start": Part(start), "seed": start.seed, "steps": steps, "eval_every": eval_every or max(1, world.steps // 10)}
    if world.learning_rate != WORLDS["reviews"].learning_rate:
        told["learning_rate"] = world.learning_rate
    return Job(world, start.seed, label, script, told | world.run | options)


# ---------------------------------------------------------------------------------------------------------------- making


def call(arguments: list[str], log: Path) -> None:
    """`python ARGUMENTS`, with numbers that do not depend on how many run beside it, nor on AVX-512; output to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        env = os.environ | ENVIRONMENT
        code = subprocess.run([sys.executable, *arguments], stdout=output, stderr=output, env=env).returncode
    if code:
        fail(f"python {' '.join(arguments)}: exit code {code}; see {log}")


def make_folder(job: Job) -> None:
    """Make a job's folder aside, or go on with it, and rename it when it is complete."""
    if job.folder.exists():
        return
    if code_of.__wrapped__(job.module) != code_of(job.module):
        fail(f"{job.module}: its code has changed since this command began; repeat the command")
    aside, log = job.folder.with_name(f"{job.folder.name}.partial"), job.folder.with_name(f"{job.folder.name}.log")
    call(["-m", *job.arguments, *["--resume"] * job.is_run, "--out", str(aside)], log)
    aside.rename(job.folder)


def make_result(job: Job) -> None:
    """Keep of a job's folder what figures need: arguments, evaluations and the verdicts behind them, or result.json."""
    row = {"label": job.label, "digest": job.digest, "command": f"python -m {' '.join(job.arguments)}"}
    if job.is_run:
        args, evals = load_run(str(job.folder))
        verdicts = {"golden": [], "rule": []}
        for evaluation in evals:
            rows = train_rows(str(job.folder), evaluation["step"])
            verdicts["golden"].append(wins(torch.tensor([r["win_rate_margin"] for r in rows])))
            verdicts["rule"].append(rule_wins(args, rows))
            del evaluation["samples"]
        lines = Path(job.folder, "metrics.jsonl").read_bytes().splitlines()
        parts = {"first": lines[:BEGINNING], "all": lines}
        hashes = {name: hashlib.sha256(b"\n".join(part)).hexdigest() for name, part in parts.items()}
        # per evaluation a digit per prompt: 0 lost, 1 tie, 2 won
        digits = {
            name: ["".join(f"{2 * v:.0f}" for v in values.tolist()) for values in rows if values is not None]
            for name, rows in verdicts.items()
        }
        losses = torch.tensor([json.loads(line)["loss"] for line in lines], dtype=torch.float64).split(LOSS_WINDOW)
        row |= {"args": args, "evals": evals, "wins": digits, "metrics": hashes}
        row["losses"] = [round(part.mean().item(), 5) for part in losses]
    elif (job.folder / "result.json").exists():
        row["result"] = json.loads((job.folder / "result.json").read_text())
    job.result.parent.mkdir(parents=True, exist_ok=True)
    aside = job.result.with_suffix(".partial")
    with open(aside, "wb") as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:  # equal results are equal bytes
        packed.write(json.dumps(row).encode())
    aside.rename(job.result)


def plan(jobs: list[Job], results: bool = True) -> list[tuple[Job, bool]]:
    """(job, whether its result is wanted) of everything that is still to be made, what is read before what reads it.

    results: whether the jobs' results are to be kept; otherwise their folders are to be there.
    """
    todo: dict[tuple, Job] = {}

    def visit(job: Job, wanted: bool) -> None:
        if job.key in todo or (job.result.exists() if wanted else job.folder.exists()):
            return
        if not job.folder.exists():
            for need in job.needs:
                visit(need, False)
        todo[job.key] = job

    for job in jobs:
        visit(job, results)
    wanted = {job.key for job in jobs if results}
    return [(job, key in wanted and not job.result.exists()) for key, job in todo.items()]


def make(jobs: list[Job], workers: int, results: bool = True) -> None:
    """Make what is missing, `workers` jobs at a time. An interrupted call is continued by repeating it."""
    todo, futures, turns, stopped = plan(jobs, results), {}, Semaphore(workers), Event()

    def work(job: Job, wanted: bool) -> None:
        for need in job.needs:
            if need.key in futures:
                futures[need.key].result()
        with turns:  # whoever waits for what it needs keeps no other from its turn
            if not stopped.is_set():
                make_folder(job)
                if wanted:
                    make_result(job)

    with ThreadPoolExecutor(max(1, len(todo))) as pool:
        for job, wanted in todo:
            futures[job.key] = pool.submit(work, job, wanted)
        try:
            for future in tqdm(as_completed(futures.values()), total=len(todo), desc="jobs", unit="job", disable=not todo):
                future.result()
        except BaseException:
            stopped.set()  # those that are at it end first
            raise


def stale(jobs: list[Job]) -> list[Job]:
    """The jobs whose kept result was made by other code or arguments than today's."""
    return [job for job in jobs if job.result.exists() and read(job)["digest"] != job.digest]


def tell_stale(jobs: list[Job]) -> None:
    """A line if kept results were made by other code."""
    if old := {job.result: job for job in stale(jobs)}:
        revisions = {read(job)["args"]["git_revision"] for job in old.values() if "args" in read(job)}
        print(f"{len(old)} results were made by other code than today's, at {revisions}; to make one anew, delete it")


def check_starts(jobs: list[Job]) -> None:
    """Fail where runs from one start differ before their first step: it was made anew between them, with other numbers."""
    first: dict[tuple, Job] = {}
    for job in jobs:
        if job.is_run and job.result.exists():
            parts = [job.options.get(name) for name in ("start", "model")]
            key = job.home, *(part.job.label for part in parts if part)
            results = [read(other) for other in (job, first.setdefault(key, job))]
            if len({(row["wins"]["golden"][0], row["evals"][0]["response_length"]) for row in results}) > 1:
                told = f"{job.result} and {first[key].result}: their runs began from different models"
                fail(f"{told}, one perhaps made on another kind of machine; delete those of one and make them again")


@cache
def read_file(path: Path) -> dict:
    return json.loads(gzip.decompress(path.read_bytes()))


def read(job: Job) -> dict:
    """A job's kept result."""
    return read_file(job.result)
