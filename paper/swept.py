"""Frontier: is online ahead of offline when both sides may choose among the same settings?

Tang et al. 2024, Figure 1, with two changes that make it fair. Both sides have every setting of one
list, learning rates of 0.3 and 1 times the default and two or three betas a loss, not offline
alone. And both are compared at a KL budget (statistics.py), not where curves first cross a level.
The learning rate is constant, so that a shorter run is the first part of a longer one.

Fixed before the runs. The primary claims, one a loss (IPO, DPO, SLiC) and judge: online less
offline at a budget of 4 nats, by the golden preference model and by the ground-truth score, each
judge choosing and measuring. A claim is decided where its 95 % interval over seeds 11 to 15
excludes 0. All else is secondary. The settings do not change after the first of these runs.
A pilot on seeds 100 and 101, with each loss's lowest beta, says whether 800 steps do: where all
frontiers up to 8 nats are within 0.02 of those of 1,600. It also gives the smallest difference that
five seeds can decide.
"""

from collections.abc import Iterable
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, variance

import ipo_online
from paper.runs import SHORT, Job, run, setup
from paper.statistics import (
    AT,
    BUDGETS,
    JUDGES,
    Row,
    T,
    arms_table,
    at_budget,
    differences,
    draw_arms,
    flat,
    gather,
    rows_of,
    table,
    told,
)

SEEDS, PILOT_SEEDS = (11, 12, 13, 14, 15), (100, 101)
FEWER_SEEDS = SEEDS[:3]  # of the secondary questions, which use these runs too
STEPS = 1600  # 800, where the pilot says that they do
RATES = (0.3, 1)  # times the default
BETAS = {"ipo": (0.02, 0.05, 0.1), "dpo": (0.2, 1), "slic": (0.1, 0.5)}
RLOO_BETAS: tuple[float, ...] = ()  # two, to be named here before the runs are made
# Standard deviation over seeds of the difference at 4 nats, {judge: nats}: the pilot prints it
SPREAD: dict[str, float] = {}
NAMES = {"ipo": "IPO", "dpo": "DPO", "slic": "SLiC", "bo2": "Best-of-2", "rloo": "RLOO"}
# what the secondary questions read of a run: {(loss, side, rate, beta): (flags, parts)}
FINAL, EARLY = f"policies/{SHORT}", f"policies/{SHORT // 5}"
READ = {
    ("ipo", "online", 1, 0.1): (
        ("--save-pairs", "--save-policies"),
        ("online_pairs", EARLY, FINAL),
    ),
    ("ipo", "offline", 1, 0.1): (("--save-policies",), (FINAL,)),
    ("bo2", "online", 1, None): (("--save-pairs",), ("online_pairs",)),
}


def reviews(seed: int) -> Job:
    return setup(f"reviews-{seed}", seed)


def settings(loss: str) -> list[tuple[float, float | None]]:
    """The list that both sides have: (learning rate in defaults, beta)."""
    if loss == "bo2":
        return [(1, None)]  # it has no beta
    if loss == "rloo":
        return [(1, beta) for beta in RLOO_BETAS]
    return [(rate, beta) for rate in RATES for beta in BETAS[loss]]


def flags(rate: float, beta: float | None) -> tuple:
    rate = float(f"{rate * ipo_online.Args.learning_rate:.3g}")
    return ("--learning-rate", rate, *(() if beta is None else ("--beta", beta)))


def whole(loss: str, side: str, rate: float, beta: float | None, seed: int) -> Job:
    """A run of the frontier."""
    saved, keeps = READ.get((loss, side, rate, beta), ((), ())) if seed in FEWER_SEEDS else ((), ())
    name = f"{seed}__{loss}_{side}__rate={rate:g}" + ("" if beta is None else f"__beta={beta:g}")
    question = "pilot" if seed in PILOT_SEEDS else "frontier"
    steps = max(STEPS, 1600) if seed in PILOT_SEEDS else STEPS
    words = reviews(seed), seed, steps, *flags(rate, beta), *saved
    return run(question, name, f"{loss}_{side}", *words, keeps=keeps)


def short(
    question: str, name: str, script: str, seed: int, *words, rate: float = 1, **options
) -> Job:
    """A run of a secondary question: IPO's default beta, and fewer steps."""
    words = *flags(rate, None), *words
    return run(question, f"{seed}__{name}", script, reviews(seed), seed, SHORT, *words, **options)


def arms(loss: str, seed: int) -> dict[str, list[Job]]:
    sides = ("online",) if loss == "rloo" else ("online", "offline")
    return {
        side: [whole(loss, side, *setting, seed) for setting in settings(loss)] for side in sides
    }


def jobs(seeds: Iterable[int] = SEEDS, losses: Iterable[str] = NAMES) -> list[Job]:
    """Setting by setting, all seeds of it, so that an early end leaves whole settings."""
    by_seed = [[job for loss in losses for job in flat(partial(arms, loss), [s])] for s in seeds]
    return [job for same in zip(*by_seed) for job in same]


def pilot_arms(loss: str, seed: int) -> dict[str, list[Job]]:
    """The lowest beta of a loss, which goes farthest, at both rates: all would cost five hours."""
    beta = min(BETAS[loss])
    return {
        side: [whole(loss, side, rate, beta, seed) for rate in RATES]
        for side in ("online", "offline")
    }


def pilot_jobs() -> list[Job]:
    return [job for loss in BETAS for job in flat(partial(pilot_arms, loss), PILOT_SEEDS)]


def pilot() -> None:
    """Print what the pilot decides."""
    farthest, spreads = 0.0, {judge: [] for judge in JUDGES}
    for loss in BETAS:
        longer, shorter = (
            gather(partial(pilot_arms, loss), PILOT_SEEDS, until) for until in (None, 800)
        )
        for judge in JUDGES:
            for side in longer:
                apart = [
                    mean(at_budget(longer[side], k, judge).values())
                    - mean(at_budget(shorter[side], k, judge).values())
                    for k in BUDGETS
                    if k <= 8 and len(longer[side]) == len(PILOT_SEEDS)
                ]
                if not apart:
                    print(f"{NAMES[loss]}, {side}: not made yet")
                    return
                farthest = max(farthest, *map(abs, apart))
                print(f"{NAMES[loss]}, {side}, {judge}: 1,600 less 800 steps, {told(apart, '+')}")
            spreads[judge].append(variance(differences(longer, "online", "offline", AT, judge)))
    verdict = "800 steps do" if farthest <= 0.02 else "800 steps do not do"
    print(f"frontiers up to 8 nats are at most {farthest:.3f} apart: {verdict}")
    print(f"SPREAD = { {judge: round(sqrt(mean(some)), 4) for judge, some in spreads.items()} }")


def decidable(judge: str) -> str:
    """The smallest difference that five seeds can decide, if they spread as the pilot's do."""
    if judge not in SPREAD:
        return "the pilot has not been made"
    return f"{T[len(SEEDS) - 2] * SPREAD[judge] / sqrt(len(SEEDS)):.3f}"


def report(pictures: Path) -> tuple[str, list[Row]]:
    parts, rows, claims, online = [], [], [], {}
    columns = [k for k in BUDGETS if k in (1, 2, 3, 4, 8)]
    by_budget = []
    for loss, name in NAMES.items():
        groups = gather(partial(arms, loss), SEEDS)
        online[f"online {name}"] = groups["online"]
        rows += rows_of("frontier", {f"{name}, {side}": some for side, some in groups.items()})
        if "offline" not in groups:
            continue
        title = f"{name}: both sides, every setting, {STEPS:,} steps"
        parts.append(draw_arms(groups, pictures / f"frontier_{loss}.png", title))
        for judge in JUDGES:
            apart = [differences(groups, "online", "offline", k, judge) for k in columns]
            by_budget.append([name, judge, *(told(values, "+") for values in apart)])
            if loss in BETAS:
                sides = [told([*at_budget(groups[s], AT, judge).values()]) for s in groups]
                seeds, lead = len(apart[columns.index(AT)]), by_budget[-1][2 + columns.index(AT)]
                claims.append([name, judge, seeds, *sides, f"**{lead}**", decidable(judge)])
    head = (
        "loss",
        "judge",
        "seeds",
        "online",
        "offline",
        "online less offline",
        "smallest decidable",
    )
    parts.append(f"The primary claims, at a budget of {AT} nats.\n\n{table(head, claims)}")
    head = "loss", "judge", *(f"{k} nats" for k in columns)
    parts.append(f"Online less offline at every budget.\n\n{table(head, by_budget)}")
    parts.append(f"The online scripts beside each other.\n\n{arms_table(online, 'online DPO')}")
    return "\n\n".join(part for part in parts if part), rows
