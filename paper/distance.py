"""Distance: is online worth more, the farther the optimum is from the data?

Beyond the paper. The reviews are by writers whose mood is uniform on [0, m]: the less praise the
data have, the farther the optimum. One yardstick: the golden preference model and the baseline
policy stay those of m = 1. SFT, the pairs, golden's labels on them and the proxy follow m. DPO at
its defaults, 800 steps, seeds 21 to 23, three arms: offline; online labelled by that proxy, so that
online learns no more than the data tell; online labelled by the golden preference model itself, an
ideal labeller, which breaks that rule and is there to explain.

Written down before these runs, after a pilot on seed 1: (a) with golden's labels online's lead at 4
nats grows as m falls; (b) with the proxy's it shrinks and turns negative; (c) the proxy's agreement
with golden on the online policy's samples orders the leads. Any further explanation is exploratory.
"""

from math import log
from statistics import correlation, mean

from paper import robustness
from paper.runs import Job, run, setup
from paper.statistics import AT, BY, Arms, Report, gather, told

SEEDS, MOODS, STEPS = (21, 22, 23), (1, 0.5, 0.25), 800  # 0.75 is left out to save an hour
PROXY, GOLDEN = "proxy's labels, online", "golden's labels, online"


def reviews(mood: float, seed: int) -> Job:
    if mood == 1:
        return setup(f"reviews-{seed}", seed)
    yardstick = reviews(1, seed)
    words = ["--mood", mood, "--golden-model", yardstick.folder / "golden", "--golden-steps", 0]
    words += ["--baseline", yardstick.folder / "baseline"]
    return setup(f"reviews-{seed}__mood={mood:g}", seed, *words, needs=(yardstick,), seconds=95)


def arms(seed: int) -> Arms:
    made = {}
    for mood in MOODS:
        data, name = reviews(mood, seed), f"{seed}__mood={mood:g}__dpo"
        ideal = "--proxy", data.folder / "golden"
        told = {"offline": ("offline", ()), PROXY: ("online", ()), GOLDEN: ("online", ideal)}
        for arm, (side, words) in told.items():
            label = f"{name}_{side}" + ("__golden" if words else "")
            words = label, f"dpo_{side}", data, seed, STEPS, *words
            made[f"m = {mood:g}, {arm}"] = [run("distance", *words)]
    return made


def far(result: dict) -> float:
    """-log of the share of SFT's samples that reach the baseline's median ground-truth score."""
    count = sum(result["prompts"])
    return -log((result["evals"][0]["reach"] * count + 0.5) / (count + 1))


def agreement(result: dict) -> float | None:
    """How often proxy and golden agree on the samples of the farthest policy within the budget."""
    row = max((row for row in result["evals"] if row["kl"] <= AT), key=lambda row: row["kl"])
    return row.get("agreement")


def points(made: Report, case: str, online: str, offline: str) -> list[tuple[float, float]]:
    """(agreement, lead at the budget by golden) of each seed."""
    leads = made.lead(f"{case}, {online}", f"{case}, {offline}", "golden")
    runs = made.groups[f"{case}, {online}"]
    agreed = {seed: agreement(runs[seed][0]) for seed in leads}
    return [(agreed[seed], leads[seed]) for seed in leads if agreed[seed] is not None]


def ranks(values: list[float]) -> list[int]:
    return [sum(other < value for other in values) for value in values]


def report(made: Report) -> None:
    panels = {text: {PROXY: {}, GOLDEN: {}} for text in BY.values()}
    lines, known = [], {}
    for case in (f"m = {mood:g}" for mood in MOODS):
        offline = f"{case}, offline"
        away = {seed: far(results[0]) for seed, results in made.groups[offline].items()}
        lines.append([case, told(made.numbers(case, "distance", "", away))])
        for by, text in BY.items():
            for arm in (PROXY, GOLDEN):
                ahead = made.lead(f"{case}, {arm}", offline, by)
                lines[-1].append(told(ahead, "+"))
                panels[text][arm] |= {mean(away.values()): [*ahead.values()]} if away else {}
        known[case] = points(made, case, PROXY, "offline")
    head = ["", "distance, nats"]
    head += [f"{arm}, less offline, {by}" for by in BY for arm in (PROXY, GOLDEN)]
    axis = {"xlabel": "distance of the baseline from SFT, nats", "ylabel": f"lead at {AT} nats"}
    title = "DPO: online less offline, the farther the optimum"
    made.draw(panels, "distance", title, (0, "level"), **axis)
    made.table(head, lines)
    for arm in (GOLDEN, PROXY):
        cases = [f"m = {mood:g}" for mood in (min(MOODS), max(MOODS))]
        far_off, near = (made.lead(f"{m}, {arm}", f"{m}, offline", "golden") for m in cases)
        growth = {seed: far_off[seed] - near[seed] for seed in far_off if seed in near}
        made.parts.append(f"{arm}, lead at {' less that at '.join(cases)}: {told(growth, '+')}.")

    other = Report("", gather(robustness.arms, robustness.SEEDS), made.pictures)
    for case in (f"proxy of {pairs:,} pairs" for pairs in robustness.FEWER):
        known[f"IPO, {case}"] = points(other, case, "online", "offline")
    shown = {case: {x: [y] for x, y in some} for case, some in known.items()}
    axis = {"xlabel": "proxy's agreement with golden", "ylabel": f"lead at {AT} nats, golden"}
    title = "Online's lead, and how often its labeller is right where it goes"
    made.draw({"": shown}, "agreement", title, (0, "level"), join=False, **axis)
    columns = [*zip(*(pair for some in known.values() for pair in some))]
    if columns and all(len(set(column)) > 1 for column in columns):
        order = correlation(*map(ranks, columns))
        text = f"Rank correlation of agreement and lead, {len(columns[0])} points: {order:+.2f}."
        made.parts.append(text)
