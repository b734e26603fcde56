"""The paper's experiments, each one command, and pictures and tables from the folders that runs leave behind.

python -m paper                     the experiments: what they ask, how many jobs and core-hours, what is done
python -m paper all --jobs 2        makes what is missing, and writes docs/findings.md
python -m paper fig1 --jobs 2       one experiment: makes what it lacks, prints its tables, draws its picture
python -m paper findings            docs/findings.md and its pictures from the kept results, without any run
python -m paper again --jobs 2      are the kept results those of today's code? the first steps of each script, to the bit
python -m paper frontier RUN...     KL to SFT against win rate, as PNG and SVG, and a table
python -m paper agreement RUN...    how far the judges agree, on the data and on what each run's last policy samples
"""

import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from common import check_ranges, fail, run_command
from paper import again, agreement, findings, frontier
from paper.findings import EXPERIMENTS, done_seeds, effect_table, experiments_of
from paper.jobs import WORLDS, Job, World, check_starts, make, plan, tell_stale


@dataclass
class Make:
    world: Literal["reviews", "stories"] = "reviews"
    """the embedded world, or stories260K and its pairs (../shared; see paper/jobs.py)"""
    seeds: tuple[int, ...] | None = None
    """every stage is made anew for each of them (default: those of the experiment)"""
    jobs: int = 1
    """processes at a time, one thread each"""
    list: bool = False
    """only list the jobs that are missing"""
    runs: str = "runs/paper"
    """folder of the runs, which experiments share"""
    results: str = "docs/results"
    """folder of what is kept of them; a result that is there is not made again"""
    pictures: str = "docs/pictures"
    """folder for the pictures"""
    page: str = "docs/findings.md"
    """page that `all` writes"""


KINDS = {name: make_dataclass(name, [], bases=(Make,)) for name in (*EXPERIMENTS, "all")}


def hours(jobs: list[Job]) -> float:
    return sum(job.seconds for job in jobs) / 3600


def overview() -> None:
    """Print every experiment with what it takes and what is done."""
    table = Table(title="python -m paper NAME, or all", title_justify="left")
    for column in ("name", "asks", "seeds", "done", "jobs to make", "core-hours"):
        table.add_column(column)
    world, everything = WORLDS["reviews"], []
    for name, experiment in EXPERIMENTS.items():
        jobs = [job for seed in experiment.SEEDS for job in experiment.jobs(world, seed)]
        everything += jobs
        todo, seeds = [job for job, _ in plan(jobs)], " ".join(map(str, experiment.SEEDS))
        done = " ".join(map(str, done_seeds(experiment, world)))
        title = experiment.__doc__.splitlines()[0]
        table.add_row(name, title, seeds, done, str(len(todo)), f"{hours(todo):.1f}")
    todo = [job for job, _ in plan(everything)]
    table.add_row("all", "experiments share jobs", "", "", str(len(todo)), f"{hours(todo):.1f}")
    Console(width=150, soft_wrap=True).print(table)
    for other in list(WORLDS.values())[1:]:
        print(f"--world {other.name} makes {', '.join(experiments_of(other))} in another world")


def run(args: Make, names: list[str]) -> None:
    """Make what experiments lack, or list it; then print and draw the one, or write the page of all."""
    check_ranges(args, zero=("seeds",))
    world = World(**{**vars(WORLDS[args.world]), "runs": args.runs, "results": args.results})
    if other := [name for name in names if name not in experiments_of(world)]:
        fail(f"{', '.join(other)}: not made in the world {world.name}; there: {', '.join(experiments_of(world))}")
    asked = {name: args.seeds or EXPERIMENTS[name].SEEDS for name in names}
    jobs = [job for name, seeds in asked.items() for seed in seeds for job in EXPERIMENTS[name].jobs(world, seed)]
    if args.list:
        todo = [job for job, _ in plan(jobs)]
        for job in todo:
            print(f"{job.seconds / 60:5.1f} min  {job.folder}\n           python -m {' '.join(job.arguments)}")
        print(f"{len(todo)} jobs to make: about {hours(todo):.1f} core-hours")
        return
    make(jobs, args.jobs)
    check_starts(jobs)
    tell_stale(jobs)
    if len(names) > 1:
        findings.main(findings.Args(args.page, args.pictures, args.results))
        return
    report = EXPERIMENTS[names[0]].report(world, asked[names[0]], str(Path(args.pictures, f"{args.world}_{names[0]}")))
    print(f"\n{report.text}\n\n{effect_table(report.effects)}")


def main(args) -> None:
    for module in (findings, again, frontier, agreement):
        if isinstance(args, module.Args):
            return module.main(args)
    name = type(args).__name__
    run(args, list(experiments_of(WORLDS[args.world])) if name == "all" else [name])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        overview()
        raise SystemExit(0)
    commands = {name: (kind, EXPERIMENTS[name].__doc__ if name != "all" else __doc__) for name, kind in KINDS.items()}
    commands |= {
        name: (module.Args, module.__doc__)
        for name, module in (("findings", findings), ("again", again), ("frontier", frontier), ("agreement", agreement))
    }
    union = None
    for name, (kind, text) in commands.items():
        command = Annotated[kind, tyro.conf.subcommand(name, description=text)]
        union = command if union is None else union | command
    run_command(main, tyro.cli(union, description=__doc__))
