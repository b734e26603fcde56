"""Write the findings page, its pictures, and a CSV file with its numbers, seed by seed.

The prose is that of paper/findings.md, where a mark such as `<!-- frontier -->` stands for what a
question's report makes of paper/results. The page says what has not been made.
"""

import csv
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tyro

from common import check_ranges, fail
from paper import beyond, board, hypotheses, optimum, runs, swept
from paper.statistics import BUDGETS, BY, Question, Report, flat, gather

FEWER = swept.FEWER_SEEDS
QUESTIONS = {
    "pilot": Question(swept.pilot_arms, swept.pilot_report, swept.PILOT_SEEDS, None),
    "frontier": Question(swept.arms, swept.report, swept.SEEDS, None),
    "optimum": Question(optimum.arms, optimum.report, swept.SEEDS, None),
    "coverage": Question(hypotheses.coverage, hypotheses.coverage_report, FEWER),
    "quality": Question(hypotheses.quality, hypotheses.quality_report, FEWER),
    "classification": Question(hypotheses.classification, hypotheses.classification_report, FEWER),
    "loss": Question(hypotheses.loss, hypotheses.loss_report, FEWER),
    "scale": Question(hypotheses.scale, hypotheses.scale_report, FEWER),
    "robustness": Question(beyond.robustness, beyond.robustness_report, FEWER),
    "distance": Question(beyond.distance, beyond.distance_report, beyond.DISTANCE_SEEDS),
    "stories": Question(beyond.stories, beyond.stories_report, beyond.STORIES_SEEDS),
    "board": Question(board.arms, board.report, board.SEEDS),
}


@dataclass
class RunArgs:
    """Make the runs of experiments that are missing. Ended anywhere, the same call continues.

    To keep all but the board within 20 core-hours, secondary questions have three seeds."""

    questions: tyro.conf.Positional[tuple[str, ...]] = ()
    """of pilot, frontier, optimum, coverage, quality, classification, loss, scale, robustness,
    distance, stories, board; none: print what each costs, and make nothing"""
    jobs: int = 2
    """runs at a time, each on one core"""


@dataclass
class Args:
    page: str = "docs/findings.md"
    """page to write"""


def run(args: RunArgs) -> None:
    if unknown := set(args.questions) - QUESTIONS.keys():
        fail(f"{min(unknown)}: no such question; there are {', '.join(QUESTIONS)}")
    check_ranges(args)
    wanted, counted = [], 0.0
    for name in args.questions or QUESTIONS:
        jobs = flat(QUESTIONS[name].arms, QUESTIONS[name].seeds)
        wanted += jobs
        hours = sum(job.seconds for job in runs.plan(wanted)) / 3600
        told = f"{sum(job.done for job in jobs)} of {len(jobs)} runs are there"
        print(f"{name}: {told}; the others about {hours - counted:.1f} core-hours")
        counted = hours
    print(f"together about {counted:.1f} core-hours, {counted / args.jobs:.1f} hours", flush=True)
    if args.questions:
        runs.make(wanted, args.jobs)


def main(args: Args) -> None:
    path, rows, parts = Path(args.page), [], {}
    card = Report("scorecard", {}, path.parent)
    for name, question in QUESTIONS.items():
        groups = gather(question.arms, question.seeds, question.until)
        made = Report(name, groups, path.parent / "pictures", len(question.seeds))
        question.report(made)
        jobs = flat(question.arms, question.seeds)
        there = sum(job.result.exists() for job in jobs)
        if there < len(jobs):
            made.parts.insert(0, f"Not complete: {there} of {len(jobs)} runs have been made.")
        for arm, by, k in product(groups, BY, BUDGETS):
            made.cell(arm, f"win rate, {by}", made.won(arm, by, k), at=k)
        if made.claims:
            lines = (f"{text}: **{verdict}**" for _, text, *_, verdict in made.claims)
            made.parts.insert(0, f"Verdicts: {'; '.join(lines)}.")
        parts[name], rows = made.parts, rows + made.numbers
        card.claims += made.claims
    head = "paper's figure", "claim", "effect, by golden", "by truth", "seeds", "did it come out?"
    card.table(head, card.claims)
    text = Path(__file__).with_name("findings.md").read_text()
    for name, some in (parts | {"scorecard": card.parts}).items():
        text = text.replace(f"<!-- {name} -->", "\n\n".join(some))
    results = [json.loads(file.read_text()) for file in runs.RESULTS.rglob("*.json")]
    revisions = {result["revision"] for result in results}
    text = text.replace("<!-- revision -->", ", ".join(sorted(revisions)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        head = "question", "arm", "seed", "measure", "at", "value"
        csv.writer(file).writerows([head, *rows])
    print(f"wrote {path}, and {len(rows)} numbers of {len(results)} results beside it")
    if len(revisions) > 1:
        print(f"they were made by {len(revisions)} versions of the code, which may not compare")
