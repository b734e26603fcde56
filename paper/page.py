"""Write the generated parts of the findings page: tables and pictures of paper/results, and a CSV.

Each part stands between `<!-- QUESTION -->` and `<!-- end -->` on the page; the prose around it is
by hand. A part whose marks are not there is printed instead. What has not been made is said.
"""

import csv
import json
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import tyro

from common import fail
from paper import optimum, runs, swept
from paper.statistics import Report, flat, gather

NAMES = "coverage quality classification loss scale distance stories robustness".split()
QUESTIONS = {"frontier": swept} | {name: import_module(f"paper.{name}") for name in NAMES}


@dataclass
class RunArgs:
    """Make the runs of experiments that are missing. Ended anywhere, the same call continues.

    To keep all within 20 core-hours, secondary questions have three seeds and mostly 400 steps."""

    questions: tyro.conf.Positional[tuple[str, ...]] = ()
    """of frontier, coverage, quality, classification, loss, scale, distance, stories, robustness;
    none: print what each costs, and make nothing"""
    jobs: int = 2
    """runs at a time, each on one core"""
    limit_hours: float = float("inf")
    """end after so many hours; what is under way then continues with the next call"""
    pilot: bool = False
    """the pilot of the frontier instead, and what it decides"""


@dataclass
class Args:
    page: str = "docs/findings.md"
    """page whose parts are written"""


def run(args: RunArgs) -> None:
    if unknown := set(args.questions) - QUESTIONS.keys():
        fail(f"{min(unknown)}: no such question; there are {', '.join(QUESTIONS)}")
    if args.jobs < 1 or not args.limit_hours > 0:
        fail("--jobs must be 1 or more, --limit-hours above 0")
    asked, seconds, wanted, counted = {}, runs.measured(), {}, 0.0
    if args.pilot or not args.questions:
        asked["pilot"] = flat(swept.pilot_arms, swept.PILOT_SEEDS)
    if not args.pilot:
        chosen = {name: QUESTIONS[name] for name in args.questions or QUESTIONS}
        asked |= {name: flat(question.arms, question.SEEDS) for name, question in chosen.items()}
    for name, jobs in asked.items():
        wanted |= dict.fromkeys(jobs)
        hours = runs.estimate(runs.plan(wanted), seconds)
        told = f"{sum(job.done for job in jobs)} of {len(jobs)} runs are there"
        print(f"{name}: {told}; the others about {hours - counted:.1f} core-hours")
        counted = hours
    print(f"together about {counted:.1f} core-hours, {counted / args.jobs:.1f} hours", flush=True)
    if args.questions or args.pilot:
        runs.make(wanted, args.jobs, args.limit_hours)
    if args.pilot:
        swept.pilot()


def main(args: Args) -> None:
    path, rows = Path(args.page), []
    text = path.read_text() if path.exists() else ""
    for name, question in {"optimum": optimum, **QUESTIONS}.items():
        until = None if question in (swept, optimum) else runs.SHORT
        groups = gather(question.arms, question.SEEDS, until)
        made = Report(name, groups, path.parent / "pictures")
        question.report(made)
        jobs = flat(question.arms, question.SEEDS)
        there = sum(job.result.exists() for job in jobs)
        if there < len(jobs):
            made.parts.insert(0, f"Not complete: {there} of {len(jobs)} runs have been made.")
        part, rows = "\n\n".join(made.parts), rows + made.rows
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if marks.search(text):
            text = marks.sub(lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text)
        else:
            print(f"{path} has no mark for {name}:\n\n{part}\n")
    if path.exists():
        path.write_text(text)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("question", "arm", "seed", "measure", "at", "value"))
        table.writerows((*row[:-1], f"{row[-1]:.5g}") for row in rows)
    results = [json.loads(file.read_text()) for file in runs.RESULTS.rglob("*.json")]
    revisions = {result["revision"] for result in results}
    print(f"wrote {path.with_suffix('.csv')}: {len(rows)} numbers of {len(results)} results")
    if len(revisions) > 1:
        print(f"they were made by {len(revisions)} versions of the code, which may not compare")
