"""Robustness: do the proxy's, golden's and the baseline's quality change the picture?

Beyond the paper, as tables. Offline and online IPO at their defaults, 400 steps: with proxies that
have seen 1,000 and 4,000 of D_golden's pairs, again and again (offline asks none and stays as it
is); with a golden preference model of 50 steps instead of 400, and all behind it made by it; and
against a baseline policy that has trained for 400 steps, not 200, which moves where parity lies.
Three seeds.
"""

from collections.abc import Callable
from pathlib import Path

from paper import swept
from paper.runs import SHORT, Job, run, setup, stage
from paper.statistics import (
    AT,
    JUDGES,
    Row,
    at_budget,
    differences,
    flat,
    gather,
    rows_of,
    table,
    told,
)

FEWER = (1000, 4000)
SETUPS = {"weaker golden": ("--golden-steps", 50), "stronger baseline": ("--policy-steps", 400)}


def arms(seed: int) -> dict[str, list[Job]]:
    made = {
        f"as it is, {side}": [swept.whole("ipo", side, 1, 0.1, seed)]
        for side in ("online", "offline")
    }
    for pairs in FEWER:
        words = "proxy", "--setup", swept.reviews(seed).folder, "--pairs", pairs, "--seed", seed
        needs = (swept.reviews(seed),)
        proxy = stage(f"{seed}__proxy__pairs={pairs}", *words, needs=needs, seconds=45)
        told = f"ipo_online__proxy={pairs}", "ipo_online", seed, "--proxy", proxy.folder
        online = swept.short("robustness", *told, needs=(proxy,))
        made[f"proxy of {pairs:,} pairs, online"] = [online]
        made[f"proxy of {pairs:,} pairs, offline"] = made["as it is, offline"]
    for label, words in SETUPS.items():
        name = f"reviews-{seed}__{label.replace(' ', '_')}"
        other = setup(name, seed, *words, seconds=150 if "golden" in label else 230)
        for side in ("online", "offline"):
            name, script = f"{seed}__ipo_{side}__{label.replace(' ', '_')}", f"ipo_{side}"
            made[f"{label}, {side}"] = [run("robustness", name, script, other, seed, SHORT)]
    return made


def jobs() -> list[Job]:
    return flat(arms, swept.FEWER_SEEDS)


def points_of_proxies(points: Callable) -> list[tuple[float, float]]:
    """What distance.py draws of each proxy of few pairs."""
    groups = gather(arms, swept.FEWER_SEEDS, SHORT)
    names = [f"proxy of {pairs:,} pairs" for pairs in FEWER]
    return [p for name in names for p in points(groups, f"{name}, online", f"{name}, offline")]


def report(pictures: Path) -> tuple[str, list[Row]]:
    groups, lines = gather(arms, swept.FEWER_SEEDS, SHORT), []
    for case in dict.fromkeys(arm.rpartition(", ")[0] for arm in groups):
        for judge in JUDGES:
            sides = [f"{case}, {side}" for side in ("online", "offline")]
            rates = [told(list(at_budget(groups[arm], AT, judge).values())) for arm in sides]
            lines.append([case, judge, *rates, told(differences(groups, *sides, AT, judge), "+")])
    head = "case", "judge", f"online at {AT} nats", f"offline at {AT} nats", "online less offline"
    return table(head, lines), rows_of("robustness", groups)
