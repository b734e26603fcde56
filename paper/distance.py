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

from functools import partial
from math import inf, log
from pathlib import Path
from statistics import correlation, mean

from paper import robustness
from paper.runs import Job, run, setup
from paper.statistics import (
    AT,
    JUDGES,
    Groups,
    Row,
    differences,
    draw,
    flat,
    gather,
    rows_of,
    table,
    told,
)

SEEDS, MOODS, STEPS = (21, 22, 23), (1, 0.5, 0.25), 800  # 0.75 is left out to save an hour
ONLINE = {"proxy": "online, its proxy's labels", "golden": "online, golden's labels"}


def reviews(mood: float, seed: int) -> Job:
    if mood == 1:
        return setup(f"reviews-{seed}", seed)
    yardstick = reviews(1, seed)
    words = ["--mood", mood, "--golden-model", yardstick.folder / "golden", "--golden-steps", 0]
    words += ["--baseline", yardstick.folder / "baseline"]
    return setup(f"reviews-{seed}__mood={mood:g}", seed, *words, needs=(yardstick,), seconds=95)


def arms(mood: float, seed: int) -> dict[str, list[Job]]:
    made, data = {}, reviews(mood, seed)
    golden = "--proxy", data.folder / "golden"
    for arm, script, words in (
        ("offline", "dpo_offline", ()),
        (ONLINE["proxy"], "dpo_online", ()),
        (ONLINE["golden"], "dpo_online", golden),
    ):
        label = "__golden" if words else ""
        name = f"{seed}__mood={mood:g}__{script}{label}"
        made[arm] = [run("distance", name, script, data, seed, STEPS, *words)]
    return made


def jobs() -> list[Job]:
    return [job for mood in MOODS for job in flat(partial(arms, mood), SEEDS)]


def far(result: dict) -> float:
    """-log of the share of SFT's samples that reach the baseline's median ground-truth score."""
    count = sum(result["prompts"])
    return -log((result["evals"][0]["reach"] * count + 0.5) / (count + 1))


def agreement(result: dict) -> float | None:
    """How often proxy and golden agree on the samples of the farthest policy within the budget."""
    row = max((row for row in result["evals"] if row["kl"] <= AT), key=lambda row: row["kl"])
    return row.get("agreement")


def points(groups: Groups, online: str, offline: str = "offline") -> list[tuple[float, float]]:
    """(agreement, lead at the budget by golden) of each seed."""
    found = []
    for seed in groups[online].keys() & groups[offline].keys():
        agreed = agreement(groups[online][seed][0])
        if agreed is not None:
            one = {arm: {seed: groups[arm][seed]} for arm in (online, offline)}
            found += [(agreed, lead) for lead in differences(one, online, offline, AT, "golden")]
    return found


def ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) for value in values]


def report(pictures: Path) -> tuple[str, list[Row]]:
    leads: dict[str, dict[str, dict[float, list[float]]]] = {}
    lines, rows, agreed = [], [], {}
    for mood in MOODS:
        groups = gather(partial(arms, mood), SEEDS)
        rows += rows_of("distance", {f"m = {mood:g}, {arm}": g for arm, g in groups.items()})
        away = [far(results[0]) for results in groups["offline"].values()]
        lines.append([f"{mood:g}", told(away)])
        for judge in ("golden", "truth"):
            for label, online in ONLINE.items():
                lead = differences(groups, online, "offline", AT, judge)
                lines[-1].append(told(lead, "+"))
                best = differences(groups, online, "offline", inf, judge)
                rows += [
                    ("distance", f"m = {mood:g}, {label}", "", f"best, {judge}", "", v)
                    for v in best
                ]
                if away:
                    leads.setdefault(JUDGES[judge], {}).setdefault(online, {})[mean(away)] = lead
        agreed[f"m = {mood:g}"] = points(groups, ONLINE["proxy"])
        lines[-1].append(told([share for share, _ in agreed[f"m = {mood:g}"]]))
    agreed["fewer pairs"] = robustness.points_of_proxies(points)
    head = ["m", "distance, nats"]
    head += [f"lead, {label}'s labels, {judge}" for judge in JUDGES for label in ONLINE]
    head.append("proxy's agreement")
    axis = {"xlabel": "distance of the baseline from SFT, nats", "ylabel": f"lead at {AT} nats"}
    title = "DPO: online less offline, the farther the optimum"
    parts = [draw(leads, pictures / "distance.png", title, **axis), table(head, lines)]
    axis = {"xlabel": "proxy's agreement with golden", "ylabel": f"lead at {AT} nats, golden"}
    shown = {"": {name: {x: [y] for x, y in some} for name, some in agreed.items()}}
    title = "Online's lead, and how often its labeller is right where it goes"
    parts.append(draw(shown, pictures / "agreement.png", title, **axis))
    if len(found := [point for some in agreed.values() for point in some]) > 2:
        order = correlation(*map(ranks, zip(*found)))
        parts.append(f"Rank correlation of agreement and lead: {order:+.2f}, {len(found)} points.")
    return "\n\n".join(part for part in parts if part), rows
