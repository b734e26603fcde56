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

from itertools import product
from math import sqrt
from pathlib import Path
from statistics import mean, variance

import ipo_online
from paper.runs import SHORT, Job, run, setup
from paper.statistics import AT, BUDGETS, BY, Arms, Report, T, gather, sides

SEEDS, PILOT_SEEDS = (11, 12, 13, 14, 15), (100, 101)
FEWER_SEEDS = SEEDS[:3]  # of the secondary questions, which use these runs too
STEPS = 1600  # the pilot says that 800 do not do
RATES = (0.3, 1)  # times the default
BETAS = {"ipo": (0.02, 0.05, 0.1), "dpo": (0.2, 1), "slic": (0.1, 0.5)}
RLOO_BETAS = (0.2, 1)  # h is drawn to margin / beta: as far as IPO at 0.02 and 0.1
SIDES = "online", "offline"
NAMES = {"ipo": "IPO", "dpo": "DPO", "slic": "SLiC", "bo2": "Best-of-2", "rloo": "RLOO"}
# what the secondary questions read of a run: {(script, rate, beta): (flags, parts)}
FINAL, EARLY = f"policies/{SHORT}", f"policies/{SHORT // 5}"
READ = {
    ("ipo_online", 1, 0.1): (("--save-pairs", "--save-policies"), ("online_pairs", EARLY, FINAL)),
    ("ipo_offline", 1, 0.1): (("--save-policies",), (FINAL,)),
    ("bo2_online", 1, None): (("--save-pairs",), ("online_pairs",)),
}


def reviews(seed: int) -> Job:
    return setup(f"reviews-{seed}", seed)


def flags(rate: float, beta: float | None) -> tuple:
    rate = float(f"{rate * ipo_online.Args.learning_rate:.3g}")
    return "--learning-rate", rate, *(() if beta is None else ("--beta", beta))


def whole(loss: str, side: str, rate: float, beta: float | None, seed: int) -> Job:
    """A run of the frontier."""
    script = f"{loss}_{side}"
    saved, keeps = READ.get((script, rate, beta), ((), ())) if seed in FEWER_SEEDS else ((), ())
    name = f"{script}__rate={rate:g}" + ("" if beta is None else f"__beta={beta:g}")
    question, steps = ("pilot", 1600) if seed in PILOT_SEEDS else ("frontier", STEPS)
    words = *flags(rate, beta), *saved
    return run(question, name, script, reviews(seed), seed, steps, *words, keeps=keeps)


def short(question: str, name: str, seed: int, *words, rate=1, steps=SHORT, **options) -> Job:
    """A run of a secondary question, at the default beta. Its name begins with the script's."""
    script, words = name.partition("__")[0], (*flags(rate, None), *words)
    return run(question, name, script, reviews(seed), seed, steps, *words, **options)


def both_sides(seed: int, betas: dict[str, tuple], rates: tuple = RATES) -> Arms:
    """Every rate and beta of each loss, for either side."""
    return {
        f"{NAMES[loss]}, {side}": [whole(loss, side, *one, seed) for one in product(rates, some)]
        for loss, some in betas.items()
        for side in SIDES
    }


def arms(seed: int) -> Arms:
    made = both_sides(seed, BETAS)
    if seed in FEWER_SEEDS:  # Best-of-2 and RLOO are in no primary claim
        made |= both_sides(seed, {"bo2": (None,)}, (1,))
        made["RLOO, online"] = [whole("rloo", "online", 1, beta, seed) for beta in RLOO_BETAS]
    return made


def pilot_arms(seed: int) -> Arms:
    """Both rates of a loss's lowest beta, which goes farthest: all settings cost five hours."""
    return both_sides(seed, {loss: (min(BETAS[loss]),) for loss in ("ipo", "dpo")})


def pilot_report(made: Report) -> None:
    """Whether 800 steps do, and what five seeds decide at 4 nats, if they spread as the pilot's."""
    half, apart = Report("", gather(pilot_arms, PILOT_SEEDS, 800), Path()), []
    for arm, by, k in product(made.groups, BY, BUDGETS[:-1]):
        if whole := made.won(arm, by, k):
            gap = mean(whole.values()) - mean(half.won(arm, by, k).values())
            apart.append((abs(gap), f"{arm}, {by}, {k:g} nats"))
    if apart:
        far, where = max(apart)
        verdict = "enough" if far <= 0.02 else "not enough"
        text = f"Frontiers of 800 and of 1,600 steps differ by at most {far:.3f} ({where})"
        made.parts.append(f"{text}. The limit was 0.02: 800 steps are {verdict}.")
    for by in BY:
        leads = [made.lead(*pair, by) for pair in sides(made.groups)]
        if min(map(len, leads)) == len(PILOT_SEEDS):
            spread = sqrt(mean(variance(lead.values()) for lead in leads))
            smallest = T[len(SEEDS) - 2] * spread / sqrt(len(SEEDS))
            text = f"With this spread, five seeds can decide a lead of {smallest:.3f} at {AT} nats"
            made.parts.append(f"{text}, {by}.")
    made.budgets(sides(made.groups), (1, 2, AT, 8))


def report(made: Report) -> None:
    for loss in (*BETAS, "bo2"):
        title = f"{NAMES[loss]}: both sides, every setting, {STEPS:,} steps"
        arms = [f"{NAMES[loss]}, {side}" for side in SIDES]
        beside = ["RLOO, online"] if loss == "dpo" else []
        made.curves(arms + beside, title, f"frontier_{loss}")
    pairs = [*sides(made.groups), ("RLOO, online", "DPO, online")]
    made.budgets(pairs, (1, 2, 3, AT, 8))
    for name in map(NAMES.get, BETAS):
        made.ahead("1", f"{name}: online is ahead", 1, f"{name}, online", f"{name}, offline")
    lines = []
    for arm, by_seed in made.groups.items():
        rows = [row for run in by_seed.get(SEEDS[0], ()) for row in run["evals"] if row["kl"] <= AT]
        if rows:
            row = max(rows, key=lambda row: row["win_rate"])
            lines.append([arm, f"{row['kl']:.1f}", row["responses"][0]])
    text = f"One prompt's response at each arm's best evaluation up to {AT} nats."
    made.table(("", "KL", "response"), lines, text)
