"""Runs of the scripts that a figure is made of: named by their arguments, made once, several at a time."""

import ast
import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import common
from common import FREE, fail, wins
from paper.frontier import load_run, rule_wins, train_rows

# Seconds on one core of a 2.3 GHz Xeon for the embedded world, roughly: what --list estimates with.
SECONDS = {"offline": 0.035, "online": 0.07, "evaluation": 1.2, "start-up": 7, "prepare": 140}


@cache
def code_of(source: str) -> str:
    """A digest of a program that changes when its code does, not when a comment or the layout does."""
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()


@cache
def contents_of(start: str) -> list[str] | None:
    """Digests of what a start's runs depend on and that in turn depends on all its stages; None before it is complete."""
    parts = [Path(start, name) for name in ("prepare.json", "golden_policy/responses.jsonl", "proxy/model.safetensors")]
    return [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts] if all(map(Path.exists, parts)) else None


@dataclass(frozen=True)
class Run:
    """One run of a script: everything that it is told, and where it leaves its folder."""

    script: str
    start: str
    seed: int
    steps: int
    eval_every: int
    options: dict = field(default_factory=dict)  # further arguments, e.g. {"beta": 0.5}
    root: str = "runs/paper"

    @property
    def told(self) -> dict:
        """The arguments that are not left at the script's defaults."""
        return {"start": self.start, "seed": self.seed, "steps": self.steps, "eval_every": self.eval_every, **self.options}

    @property
    def arguments(self) -> list[str]:
        """The same as words of a command line."""
        flags = {f"--{name.replace('_', '-')}": value for name, value in self.told.items()}
        return [word for flag, value in flags.items() for word in ([flag] if value is True else [flag, f"{value}"])]

    @property
    def folder(self) -> Path:
        """Its name holds what a reader looks for, and a digest of all that its numbers follow from: arguments, code, start."""
        module = importlib.import_module(self.script)
        arguments = {name: value for name, value in asdict(module.Args(**self.told)).items() if name not in FREE}
        code = [code_of(inspect.getsource(part)) for part in (module, common)]
        key = json.dumps([arguments, code, contents_of(self.start)])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        options = "".join(f"__{name}={Path(str(value)).name}" for name, value in self.options.items())
        return Path(self.root, Path(self.start).name, f"{self.script}{options}__steps={self.steps}__{digest}")

    @property
    def seconds(self) -> float:
        """Its estimated time on one core."""
        evaluations = 1 + -(-self.steps // self.eval_every)
        steps = self.steps * SECONDS[self.script.split("_")[1]]
        return steps + evaluations * SECONDS["evaluation"] + SECONDS["start-up"]


def call(arguments: list[str], log: Path) -> None:
    """`python ARGUMENTS` on one thread, so that its numbers do not depend on how many run beside it; output to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run([sys.executable, *arguments], stdout=output, stderr=output, env=env).returncode
    if code:
        fail(f"python {' '.join(arguments)}: exit code {code}; see {log}")


def make_start(run: Run) -> None:
    """Prepare the embedded world that a run starts from; stages that are there already stay."""
    call(["-m", "prepare", "--out", run.start, "--seed", str(run.seed)], Path(f"{run.start}.log"))


def make_run(run: Run) -> None:
    """Make one run aside, or go on with it, and rename it when it is complete."""
    aside = run.folder.with_name(f"{run.folder.name}.partial")
    call(["-m", run.script, *run.arguments, "--resume", "--out", str(aside)], run.folder.with_name(f"{run.folder.name}.log"))
    aside.rename(run.folder)


def missing_starts(runs: list[Run]) -> list[Run]:
    """One run of each start that is not complete."""
    return [*{run.start: run for run in runs if not Path(run.start, "golden_policy").exists()}.values()]


def in_parallel(function, items: list, jobs: int) -> None:
    """function(item) for every item, `jobs` at a time. After an error no further one is begun; those that run finish."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in tqdm(as_completed(futures), total=len(items), desc=function.__name__, unit="job", disable=not items):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make(runs: list[Run], jobs: int) -> None:
    """Make what is missing: first starts, then runs. An interrupted call is continued by repeating it."""
    in_parallel(make_start, missing_starts(runs), jobs)
    contents_of.cache_clear()
    in_parallel(make_run, pending(runs), jobs)


def pending(runs: list[Run]) -> list[Run]:
    return [run for run in runs if not run.folder.exists()]


def show(runs: list[Run]) -> None:
    """Print the runs, which of them are done, and the estimated core-hours of the rest."""
    table = Table(title="runs", title_justify="left")
    for name in ("script", "start", "arguments", "done", "core-minutes"):
        table.add_column(name, no_wrap=True)
    for run in runs:
        options = {"steps": run.steps, **run.options}
        arguments = " ".join(f"{name}={Path(str(value)).name}" for name, value in options.items())
        table.add_row(run.script, run.start, arguments, "yes" if run.folder.exists() else "", f"{run.seconds / 60:.1f}")
    Console(width=150, soft_wrap=True).print(table)
    starts, todo = missing_starts(runs), pending(runs)
    hours = (sum(run.seconds for run in todo) + len(starts) * SECONDS["prepare"]) / 3600
    print(f"{len(runs)} runs, {len(todo)} of them and {len(starts)} starts to make: about {hours:.1f} core-hours")


@dataclass
class Curve:
    """The evaluations of one run: E of them, in the order of steps."""

    run: Run
    steps: list[int]
    kl: list[float]
    wins: torch.Tensor  # (E, J, P) against the baseline: 1, 0 or a half
    judges: list[str]  # (J,) whose verdicts: golden's and, where it exists, the exact rule's
    prompts: list[str]  # (P,) training prompts

    def until(self, step: int) -> "Curve":
        """The curve of a shorter run: the learning rate is constant, so a shorter run is a prefix of a longer one."""
        count = sum(s <= step for s in self.steps)
        return replace(self, steps=self.steps[:count], kl=self.kl[:count], wins=self.wins[:count])

    def judged_by(self, first: int) -> "Curve":
        """The same with another judge as the first, who chooses."""
        return replace(self, wins=self.wins.roll(-first, 1), judges=self.judges[first:] + self.judges[:first])


def load_curve(run: Run) -> Curve:
    """Read a run's evaluations and the verdicts behind them."""
    args, evals = load_run(str(run.folder))
    verdicts, prompts = [], []
    for row in evals:
        rows = train_rows(str(run.folder), row["step"])
        prompts, rule = [r["prompt"] for r in rows], rule_wins(args, rows)
        golden = wins(torch.tensor([r["win_rate_margin"] for r in rows]))
        verdicts.append(torch.stack([golden] if rule is None else [golden, rule]))
    steps, kl = ([row[name] for row in evals] for name in ("step", "kl"))
    return Curve(run, steps, kl, torch.stack(verdicts), ["golden", "rule"][: len(verdicts[0])], prompts)


def join(beginning: Run, run: Run) -> Curve:
    """A run's curve with the denser evaluations of its beginning, which was run again: the same training to the byte."""
    if not (run.folder / "metrics.jsonl").read_text().startswith((beginning.folder / "metrics.jsonl").read_text()):
        fail(f"{beginning.folder} is not the beginning of {run.folder}; make both on one machine")
    first, rest = load_curve(beginning), load_curve(run)
    after = slice(sum(step <= first.steps[-1] for step in rest.steps), None)
    kl, verdicts = first.kl + rest.kl[after], torch.cat([first.wins, rest.wins[after]])
    return replace(rest, steps=first.steps + rest.steps[after], kl=kl, wins=verdicts)
