"""Robustness: do the proxy's, golden's and the baseline's quality change the picture?

Beyond the paper, as tables. Offline and online IPO at their defaults, 400 steps: with proxies that
have seen 1,000 and 4,000 of D_golden's pairs, again and again (offline asks none and stays as it
is); with a golden preference model of 50 steps instead of 400, and all behind it made by it; and
against a baseline policy that has trained for 400 steps, not 200, which moves where parity lies.
Three seeds.
"""

from paper import swept
from paper.runs import SHORT, run, setup, stage
from paper.statistics import AT, BY, Arms, Report, told

SEEDS = swept.FEWER_SEEDS
FEWER = (1000, 4000)
SETUPS = {"weaker golden": ("--golden-steps", 50), "stronger baseline": ("--policy-steps", 400)}


def arms(seed: int) -> Arms:
    sides = ("online", "offline")
    made = {f"as it is, {side}": [swept.whole("ipo", side, 1, 0.1, seed)] for side in sides}
    reviews = swept.reviews(seed)
    for pairs in FEWER:
        words = "proxy", "--setup", reviews.folder, "--pairs", pairs, "--seed", seed
        proxy = stage(f"{seed}__proxy__pairs={pairs}", *words, needs=(reviews,), seconds=45)
        words = f"ipo_online__proxy={pairs}", "ipo_online", seed, "--proxy", proxy.folder
        online = swept.short("robustness", *words, needs=(proxy,))
        made[f"proxy of {pairs:,} pairs, online"] = [online]
        made[f"proxy of {pairs:,} pairs, offline"] = made["as it is, offline"]
    for label, words in SETUPS.items():
        name = label.replace(" ", "_")
        other = setup(f"reviews-{seed}__{name}", seed, *words)
        for side in sides:
            words = f"{seed}__ipo_{side}__{name}", f"ipo_{side}", other, seed, SHORT
            made[f"{label}, {side}"] = [run("robustness", *words)]
    return made


def report(made: Report) -> None:
    lines = []
    for case in dict.fromkeys(arm.rpartition(", ")[0] for arm in made.groups):
        sides = [f"{case}, {side}" for side in ("online", "offline")]
        for by in BY:
            won = [told(made.won(arm, by)) for arm in sides]
            lines.append([case, by, *won, told(made.lead(*sides, by), "+")])
    head = "case", "by", f"online at {AT} nats", f"offline at {AT} nats", "online less offline"
    made.table(head, lines)
