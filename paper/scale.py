"""Scale (H5): does the gap close with a larger policy?

Tang et al. 2024, Figures 10, 11 and 14. They find that it does not: the gap persists at all sizes,
online's peak rises with the size, and the online run's shuffled pairs close most of the gap.
IPO at its defaults, three sizes, each four times the one before, one SFT each; the preference
models and the baseline policy stay. The peak is the best evaluation at any KL. Three seeds.
"""

from functools import partial
from math import inf
from pathlib import Path

from paper import classification, swept
from paper.runs import SHORT, Job, stage
from paper.statistics import JUDGES, Row, at_budget, differences, draw, flat, gather, table, told

# parameters in thousands: (the untrained model of a setup, what a step costs)
SIZES = {28: ("untrained_small", 0.7), 115: ("untrained", 1), 467: ("untrained_golden", 2.6)}
METHODS = classification.ARMS


def arms(size: int, seed: int) -> dict[str, list[Job]]:
    setup, (untrained, cost) = swept.reviews(seed), SIZES[size]
    if size == 115:
        return classification.arms(seed)
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
    return dict(zip(METHODS, ([online], [shuffled], [made("ipo_offline", "d_golden")])))


def jobs() -> list[Job]:
    return [job for size in SIZES for job in flat(partial(arms, size), swept.FEWER_SEEDS)]


def report(pictures: Path) -> tuple[str, list[Row]]:
    panels, lines, rows = {name: {} for name in JUDGES.values()}, [], []
    for size in SIZES:
        groups = gather(partial(arms, size), swept.FEWER_SEEDS, SHORT)
        lines.append([f"{size} thousand"])
        for judge, name in JUDGES.items():
            for method, by_seed in groups.items():
                peaks = at_budget(by_seed, inf, judge)
                panels[name].setdefault(method, {})[size] = list(peaks.values())
                place = "scale", f"{method}, {size} thousand"
                rows += [(*place, seed, f"peak, {judge}", "", v) for seed, v in peaks.items()]
            lines[-1].append(told(list(at_budget(groups["online"], inf, judge).values())))
            for method in METHODS[1:]:
                lines[-1].append(told(differences(groups, "online", method, inf, judge), "+"))
    head = ["parameters"]
    for judge in JUDGES:
        head += [f"online's peak, {judge}", f"less shuffled, {judge}", f"less offline, {judge}"]
    axis = {"xscale": "log", "xlabel": "thousand parameters", "ylabel": "best win rate at any KL"}
    picture = draw(panels, pictures / "scale.png", "IPO: three sizes of the policy", **axis)
    return "\n\n".join(part for part in (picture, table(head, lines)) if part), rows
