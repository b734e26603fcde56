"""Frontier: is online ahead of offline when both sides may choose among the same settings?

Tang et al. 2024, Figure 1, with two changes that make it fair. Both sides have every setting of one
list, learning rates of 0.3 and 1 times the default and two or three betas a loss, not offline
alone. And both are compared at a KL budget (statistics.py), not where curves first cross a level.
The learning rate is constant, so that a shorter run is the first part of a longer one.

Fixed before the runs. The primary claims, two a loss (IPO, DPO, SLiC): online less offline at a
budget of 4 nats, by the golden preference model and by the ground-truth score; what measures also
chooses, each on its own half of the prompts. A claim is decided where its 95 % interval over seeds
11 to 15 excludes 0; with six claims, one may do so by chance. All else is secondary. Nothing was
tried on these seeds before, and no setting changes after the first of their runs.
A pilot on seeds 100 and 101, IPO and DPO with their lowest betas, says whether 800 steps do: where
all frontiers up to 8 nats are within 0.02 of those of 1,600. It also gives the smallest difference
that five seeds can decide. Best-of-2 and RLOO, which is online only, have three seeds.
"""

from math import sqrt
from pathlib import Path
from statistics import mean, variance

import ipo_online
from paper.runs import SHORT, Job, run, setup
from paper.statistics import AT, BUDGETS, BY, Arms, Report, T, gather, told

SEEDS, PILOT_SEEDS = (11, 12, 13, 14, 15), (100, 101)
FEWER_SEEDS = SEEDS[:3]  # of the secondary questions, which use these runs too
STEPS = 1600  # 800, where the pilot says that they do
RATES = (0.3, 1)  # times the default
BETAS = {"ipo": (0.02, 0.05, 0.1), "dpo": (0.2, 1), "slic": (0.1, 0.5)}
RLOO_BETAS = (0.2, 1)  # h is drawn to margin / beta: as far as IPO at 0.02 and 0.1
# Standard deviation over seeds of the difference at 4 nats, {by: sd}; the pilot prints it
SPREAD: dict[str, float] = {}
NAMES = {"ipo": "IPO", "dpo": "DPO", "slic": "SLiC", "bo2": "Best-of-2", "rloo": "RLOO"}
# what the secondary questions read of a run: {(script, rate, beta): (flags, parts)}
FINAL, EARLY = f"policies/{SHORT}", f"policies/{SHORT // 5}"
READ = {
    ("ipo_online", 1, 0.1): (["--save-pairs", "--save-policies"], ["online_pairs", EARLY, FINAL]),
    ("ipo_offline", 1, 0.1): (["--save-policies"], [FINAL]),
    ("bo2_online", 1, None): (["--save-pairs"], ["online_pairs"]),
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
    return "--learning-rate", rate, *(() if beta is None else ("--beta", beta))


def whole(loss: str, side: str, rate: float, beta: float | None, seed: int) -> Job:
    """A run of the frontier."""
    script = f"{loss}_{side}"
    saved, keeps = READ.get((script, rate, beta), ([], [])) if seed in FEWER_SEEDS else ([], [])
    name = f"{seed}__{script}__rate={rate:g}" + ("" if beta is None else f"__beta={beta:g}")
    question, steps = ("pilot", 1600) if seed in PILOT_SEEDS else ("frontier", STEPS)
    words = reviews(seed), seed, steps, *flags(rate, beta), *saved
    return run(question, name, script, *words, keeps=keeps)


def short(question: str, name: str, script: str, seed: int, *words, rate=1, **options) -> Job:
    """A run of a secondary question: the script's default beta, and fewer steps."""
    words = *flags(rate, None), *words
    return run(question, f"{seed}__{name}", script, reviews(seed), seed, SHORT, *words, **options)


def arms(seed: int) -> Arms:
    sides = [(loss, side) for loss in (*BETAS, "bo2") for side in ("online", "offline")]
    sides += [("rloo", "online")]
    return {
        f"{NAMES[loss]}, {side}": [whole(loss, side, *one, seed) for one in settings(loss)]
        for loss, side in sides
        if loss in BETAS or seed in FEWER_SEEDS  # Best-of-2 and RLOO are in no primary claim
    }


def pilot_arms(seed: int) -> Arms:
    """Both rates of a loss's lowest beta, which goes farthest: all settings cost five hours."""
    return {
        f"{NAMES[loss]}, {side}": [whole(loss, side, r, min(BETAS[loss]), seed) for r in RATES]
        for loss in ("ipo", "dpo")
        for side in ("online", "offline")
    }


def pilot() -> None:
    """Print what the pilot decides."""
    whole, half = (
        Report("pilot", gather(pilot_arms, PILOT_SEEDS, until), Path()) for until in (None, 800)
    )
    if any(len(by_seed) < len(PILOT_SEEDS) for by_seed in whole.groups.values()):
        return print("not all runs of the pilot are made yet")
    apart, spread = [], {}
    for by in BY:
        for arm in whole.groups:
            for k in BUDGETS[:-1]:
                one, other = (mean(some.won(arm, by, k).values()) for some in (whole, half))
                apart.append((abs(one - other), f"{arm}, {by}, {k:g} nats"))
        pairs = ("IPO, online", "IPO, offline"), ("DPO, online", "DPO, offline")
        variances = [variance(whole.lead(*pair, by).values()) for pair in pairs]
        spread[by] = round(sqrt(mean(variances)), 4)
    farthest, where = max(apart)
    verdict = "800 steps do" if farthest <= 0.02 else "800 steps do not do"
    print(f"frontiers up to 8 nats are at most {farthest:.3f} apart ({where}): {verdict}")
    print(f"SPREAD = {spread}")


def decidable(by: str) -> str:
    """The smallest difference that five seeds can decide, if they spread as the pilot's do."""
    if by not in SPREAD:
        return "the pilot has not been made"
    return f"{T[len(SEEDS) - 2] * SPREAD[by] / sqrt(len(SEEDS)):.3f}"


def samples(made: Report) -> list[list[str]]:
    """What the best evaluation within the budget writes, of every arm's first seed."""
    lines = []
    for arm in made.groups:
        rows = [row for run in made.groups[arm].get(SEEDS[0], ()) for row in run["evals"]]
        within = [row for row in rows if row["kl"] <= AT]
        if within:
            row = max(within, key=lambda row: row["win_rate"])
            lines.append([arm, f"{row['kl']:.1f}", row["responses"][0]])
    return lines


def report(made: Report) -> None:
    claims, leads, columns = [], [], (1, 2, 3, AT, 8)
    for loss in (*BETAS, "bo2"):
        sides = [f"{NAMES[loss]}, {side}" for side in ("online", "offline")]
        title = f"{NAMES[loss]}: both sides, every setting, {STEPS:,} steps"
        made.curves(sides, f"frontier_{loss}", title)
        for by in BY:
            cells = {k: told(made.lead(*sides, by, k), "+") for k in columns}
            leads.append([NAMES[loss], by, *cells.values()])
            if loss in BETAS:
                won = [told(made.won(side, by)) for side in sides]
                claims.append([NAMES[loss], by, *won, cells[AT], decidable(by)])
    head = "loss", "by", "online", "offline", "online less offline", "smallest decidable"
    made.table(head, claims, f"The primary claims, at a budget of {AT} nats.")
    head = "loss", "by", *(f"{k} nats" for k in columns)
    made.table(head, leads, "Online less offline at every budget; Best-of-2 on three seeds.")
    made.table(("", "KL", "response"), samples(made), "Responses to one prompt, at that budget.")
    online = [arm for arm in made.groups if "online" in arm]
    made.arms(online, "DPO, online", "The online scripts beside each other.")
