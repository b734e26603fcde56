"""Scale (H5): does the gap close with a larger policy?

Tang et al. 2024, Figures 10, 11 and 14. They find that it does not: the gap persists at all sizes,
online's peak rises with the size, and the online run's shuffled pairs close most of the gap.
IPO at its defaults, three sizes, each four times the one before, one SFT each; the preference
models and the baseline policy stay. A budget of 12 nats stands for the peak. Three seeds.
"""

from paper import coverage, swept
from paper.runs import Job, stage
from paper.statistics import BUDGETS, Arms, Report

SEEDS = swept.FEWER_SEEDS
# parameters in thousands: (the untrained model of a setup, what a step costs)
SIZES = {28: ("untrained_small", 0.7), 115: ("untrained", 1), 467: ("untrained_golden", 2.6)}


def methods(size: int, seed: int) -> list[Job]:
    """The runs of a size, as coverage.METHODS has them."""
    setup, (untrained, cost) = swept.reviews(seed), SIZES[size]
    if size == 115:
        return [job for (job,) in coverage.at_one_rate(seed).values()]
    words = ["sft", "--model", setup.folder / untrained, "--dataset", setup.folder / "d_initial"]
    name = f"{seed}__sft__{size}k"
    sft = stage(name, *words, "--seed", seed, needs=(setup,), seconds=45 * cost)
    told = {"cost": cost, "needs": (sft,)}

    def made(script: str, data: str, *words, **further) -> Job:
        words = script, seed, "--model", sft.folder, *words
        return swept.short("scale", f"{script}__{data}__{size}k", *words, **told | further)

    online = made("ipo_online", "online", "--save-pairs", keeps=("online_pairs",))
    pairs = "--dataset", online.folder / "online_pairs"
    shuffled = made("ipo_offline", "online_pairs", *pairs, needs=(sft, online))
    return [online, shuffled, made("ipo_offline", "d_golden")]


def arms(seed: int) -> Arms:
    by_size = {size: zip(coverage.METHODS, methods(size, seed)) for size in SIZES}
    return {f"{n} thousand, {name}": [job] for n, some in by_size.items() for name, job in some}


def report(made: Report) -> None:
    shown = [arm for arm in made.groups if "shuffled" not in arm]
    made.curves(shown, "scale", "IPO: three sizes of the policy")
    for size in SIZES:
        arms = [f"{size} thousand, {method}" for method in coverage.METHODS]
        made.arms(arms, arms[0], at=BUDGETS[-1])
