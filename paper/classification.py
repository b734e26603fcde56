"""Classification (H3): does who classifies better write better?

Tang et al. 2024, Figures 6 to 8, with IPO at its defaults. They find: the proxy classifies what
online samples better than any policy, and less well as the policy drifts (6). Within offline runs
accuracy on D_golden says little about the win rate (7). Offline classifies D_golden better than
online, which wins more; the log-ratio of chosen responses falls, most for offline (8). All from
runs that other questions make. Three seeds; Figure 7 takes offline's evaluations behind the first
80 steps.
"""

from pathlib import Path
from statistics import correlation, mean

from paper import coverage, swept
from paper.runs import SHORT, Job, stage
from paper.statistics import Row, draw, flat, gather, load, table, told

ARMS = "online", "its pairs, shuffled", "offline, D_golden"


def arms(seed: int) -> dict[str, list[Job]]:
    """The three arms of Figure 8, at the default rate."""
    return {arm: [jobs[-1]] for arm, jobs in coverage.arms(seed).items() if arm in ARMS}


def classified(seed: int) -> Job:
    online, offline = (swept.whole("ipo", side, 1, 0.1, seed) for side in ("online", "offline"))
    setup, name = swept.reviews(seed), f"{seed}__classified"
    words = ["classify", "--pairs", online.folder / "online_pairs", "--setup", setup.folder]
    words += ["--policies", online.folder / swept.FINAL, offline.folder / swept.FINAL]
    needs = setup, online, offline
    return stage(name, *words, needs=needs, seconds=15, question="classification")


def jobs() -> list[Job]:
    return [*flat(arms, swept.FEWER_SEEDS), *map(classified, swept.FEWER_SEEDS)]


def within_offline(seed: int) -> float | None:
    """The correlation of accuracy and golden's win rate over offline's evaluations."""
    results = [load(job) for job in swept.arms("ipo", seed)["offline"]]
    points = [
        (row["accuracy"], row["win_rate"])
        for result in results
        if result
        for row in result["evals"]
        if row["step"] > 80
    ]
    return correlation(*zip(*points)) if points else None


def report(pictures: Path) -> tuple[str, list[Row]]:
    seeds, rows = swept.FEWER_SEEDS, []
    found = {seed: load(classified(seed)) for seed in seeds}
    curves: dict[str, dict[float, list[float]]] = {}
    for seed, result in found.items():
        for who, values in result["accuracy"].items() if result else ():
            for i, value in enumerate(values):
                curves.setdefault(who, {}).setdefault((i + 1) / len(values), []).append(value)
                rows.append(("classification", who, seed, "accuracy", (i + 1) / len(values), value))
    axis = {"xlabel": "share of the online run", "ylabel": "agreement with golden"}
    title = "Who classifies the online run's pairs as the golden preference model does?"
    picture = draw({"": curves}, pictures / "classification.png", title, **axis)

    lines, groups = [], gather(arms, seeds, SHORT)
    for arm, by_seed in groups.items():
        last = {seed: results[0]["evals"][-1] for seed, results in by_seed.items()}
        columns = "accuracy", "chosen_logratio", "rejected_logratio", "win_rate"
        lines.append([arm, *(told([row[name] for row in last.values()]) for name in columns)])
        for name in columns:
            rows += [
                ("classification", arm, seed, name, SHORT, r[name]) for seed, r in last.items()
            ]
    head = (
        "after 400 steps",
        "accuracy on D_golden",
        "log-ratio of chosen",
        "of rejected",
        "win rate",
    )
    within = [value for seed in seeds if (value := within_offline(seed)) is not None]
    seven = f"Accuracy and win rate within offline runs correlate by {told(within, '+')}."
    decay = [
        mean(r["accuracy"]["proxy"][-2:]) - mean(r["accuracy"]["proxy"][:2])
        for r in found.values()
        if r
    ]
    six = f"The proxy's agreement, last fifth less first fifth of the run: {told(decay, '+')}."
    return "\n\n".join(part for part in (picture, table(head, lines), six, seven) if part), rows
