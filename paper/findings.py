"""Write docs/findings.md: every experiment's pictures, tables and verdicts, from the results that are kept in docs/results.

Nothing in it is typed by hand but the explanations, which stand at the end of each experiment's file (WHAT_CAME_OUT).
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from common import fail
from paper import (
    ahead,
    betas,
    both,
    curves,
    fig1,
    fig4,
    fig6,
    fig8,
    fig9,
    fig12,
    fig13,
    grid,
    judges,
    longer,
    losses,
    opponent,
    rates,
    sizes,
)
from paper.compare import Effect, Report, table_of
from paper.frontier import NAMES
from paper.jobs import WORLDS, World, check_starts, tell_stale

EXPERIMENTS = {
    "fig1": fig1,
    "grid": grid,
    "fig4": fig4,
    "fig13": fig13,
    "fig12": fig12,
    "fig6": fig6,
    "fig8": fig8,
    "fig9": fig9,
    "sizes": sizes,
    "ahead": ahead,
    "judges": judges,
    "betas": betas,
    "rates": rates,
    "longer": longer,
    "losses": losses,
    "both": both,
    "opponent": opponent,
    "curves": curves,
}

HEAD = """# Findings

The experiments of Tang et al. 2024 (arXiv 2405.08448) and some beyond, each one command. This page is written by `python -m
paper findings` from [`docs/results`](results); the explanations alone are by hand.

How to read it:

- **Win rates** are against the golden policy's stored responses on 512 training prompts, by golden, the preference model that
  stands for the rater as in the paper. 0.5 is parity. The embedded world also has the rater's **exact rule**: far from the
  data golden is wrong too, and the rule says where.
- **Equal KL:** the mean difference over those of 1, 2, 3 and 4 nats to SFT that both sides reach, interpolated in log KL
  where a curve first crosses them, never extrapolated. **At the peak:** each side at the best of its evaluations. What is
  chosen is chosen on one half of the prompts and reported on the other. Where both sides train equally long, only
  evaluations at steps that both have are compared; so a claim's mean may differ a little from the difference of two cells
  of its table.
- **Every seed is a world anew:** data, SFT, golden, proxy, golden policy and run. An effect is a difference within a seed;
  its interval is the 95 % t interval for the mean over seeds. "Prompts" is the standard error of one seed's difference over
  evaluation prompts, shown apart, because more prompts would shrink it and not the spread of seeds. On stories260K data and
  SFT are the same for every seed, and the interval covers less. Seeds are named where one of them has no value.
- **A claim** *holds* where its interval lies above 0, *does not hold* where it lies below, and is *undecided* where it
  contains 0. Two claims are primary and were fixed beforehand; the others are secondary, many, and each alone no proof.
  Where the paper gives no direction, there is no verdict.
- Tables give mean ± standard deviation over seeds. "-": no run of this kind reaches so many nats, or it passes them before
  its first evaluation.
- **Results** were made as the code grew, most of them at earlier revisions than today's. `python -m paper again` makes the
  first 40 steps of one run of each script anew and compares them to the bit.
"""

ELSEWHERE = """*The plan is the embedded world's, which the next paragraphs describe. Here online takes 200 steps at a learning
rate of 1e-4; offline's sweep is three learning rates at beta 0.1, up to twice online's steps; IPO alone; no claim is
primary.*"""


@dataclass
class Args:
    out: str = "docs/findings.md"
    """page to write"""
    pictures: str = "docs/pictures"
    """folder for the pictures"""
    results: str = "docs/results"
    """folder of the kept results"""


def experiments_of(world: World) -> dict:
    """{name: module} of those that can be made in a world."""
    return {name: module for name, module in EXPERIMENTS.items() if name in (world.experiments or EXPERIMENTS)}


def done_seeds(experiment, world: World) -> tuple[int, ...]:
    """The seeds for which an experiment has all its results."""
    return tuple(s for s in experiment.SEEDS if all(job.result.exists() for job in experiment.jobs(world, s)))


def effect_table(effects: list[Effect]) -> str:
    """A row for each effect; with the figure that it is about, where they are about several."""
    rows, several = [], len({e.experiment for e in effects}) > 1
    for e in effects:
        some = e.seeds is not None and e.seeds != tuple(e.values)  # not all seeds have one
        values = ", ".join(f"{seed}: {value:+.3f}" if some else f"{value:+.3f}" for seed, value in e.values.items())
        interval = f"{e.mean - e.half_width:+.3f} to {e.mean + e.half_width:+.3f}" if len(e.values) > 1 else "-"
        mean = f"{e.mean:+.3f}" if e.values else "-"
        prompts = f"{sum(e.errors.values()) / len(e.errors):.3f}" if e.errors else "-"
        claim = f"**{e.claim}**" if e.primary else e.claim
        rows.append([*[e.experiment] * several, claim, values or "-", mean, interval, prompts, e.verdict])
    return table_of([*["figure"] * several, "claim", "seeds", "mean", "95 % interval", "prompts", "verdict"], rows)


def heading(experiment, world: World) -> str:
    """Of an experiment's part of the page: the first line of its file, and where it was made."""
    title = experiment.__doc__.strip().partition("\n")[0].rstrip(".")
    return title if world.name == "reviews" else f"{title}, on {world.name}260K"


def section(name: str, experiment, world: World, report: Report, seeds: tuple[int, ...], pictures: str, page: Path) -> str:
    """An experiment's part of the page."""
    title, _, text = experiment.__doc__.strip().partition("\n")
    option = "" if world.name == "reviews" else f" --world {world.name}"
    command = f"    python -m paper {name}{option}      # seeds {', '.join(map(str, seeds))}"
    parts = [f"## {heading(experiment, world)}", *[ELSEWHERE] * (world.name != "reviews"), text.strip(), command]
    for picture in sorted(Path(pictures).glob(f"{world.name}_{name}*.png")):
        if picture.stem in (f"{world.name}_{name}", *(f"{world.name}_{name}_{loss}" for loss in NAMES)):
            parts.append(f"![{title.rstrip('.')}]({os.path.relpath(picture, page.parent)})")
    comment = getattr(experiment, "WHAT_CAME_OUT" if world.name == "reviews" else "ON_STORIES", "").strip()
    parts += [comment] * bool(comment) + [report.text] + [effect_table(report.effects)] * bool(report.effects)
    return "\n\n".join(parts)


def main(args: Args) -> None:
    worlds = [World(**{**vars(world), "results": args.results}) for world in WORLDS.values()]
    made = [(world, name, module) for world in worlds for name, module in experiments_of(world).items()]
    done = [(*which, seeds) for which in made if (seeds := done_seeds(which[2], which[0]))]
    if not done:
        fail(f"{args.results}: no experiment has all its results for any seed; make one by `python -m paper fig1`")
    used = [job for world, _, experiment, seeds in done for seed in seeds for job in experiment.jobs(world, seed)]
    check_starts(used)
    reports = {}
    for world, name, experiment, seeds in done:
        report = experiment.report(world, seeds, str(Path(args.pictures, f"{world.name}_{name}")))
        if world.name != "reviews":  # the primary claims are about the embedded world
            report = replace(report, effects=[replace(e, primary=False) for e in report.effects])
        reports[world.name, name] = experiment, world, report, seeds
    primary = [e for _, _, report, _ in reports.values() for e in report.effects if e.primary]
    parts, rows = [HEAD.strip(), "## The primary claims", effect_table(primary)], []
    for (_, name), (experiment, world, report, seeds) in reports.items():
        title = heading(experiment, world)
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")  # as GitHub makes it
        command = name if world.name == "reviews" else f"{name} --world {world.name}"
        rows.append([command, f"[{title}](#{anchor})", " ".join(map(str, seeds)), str(len(report.effects))])
    parts += ["## The experiments", table_of(["`python -m paper`", "asks", "seeds", "claims"], rows)]
    parts += [section(name, *four[:3], four[3], args.pictures, Path(args.out)) for (_, name), four in reports.items()]
    missing = [
        name if world.name == "reviews" else f"{name} on {world.name}260K"
        for world in WORLDS.values()
        for name in experiments_of(world)
        if (world.name, name) not in reports
    ]
    if missing:
        parts += [
            "## What has not been run",
            f"Not all results are there yet, and `python -m paper NAME --list` says which are missing: {', '.join(missing)}.",
        ]
    Path(args.out).write_text("\n\n".join(parts) + "\n")
    print(f"wrote {args.out}")
    tell_stale(used)
