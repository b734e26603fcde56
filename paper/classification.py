"""Classification (H3): does who classifies better write better?

Tang et al. 2024, Figures 6 to 8, with IPO at its defaults. They find: the proxy classifies what
online samples better than any policy, and less well as the policy drifts (6). Within offline runs
accuracy on D_golden says little about the win rate (7). Offline classifies D_golden better than
online, which wins more; the log-ratio of chosen responses falls, most for offline (8). All from
runs that other questions make. Three seeds; Figure 7 takes offline's evaluations behind the first
80 steps.
"""

from statistics import correlation, mean

from paper import coverage, swept
from paper.runs import SHORT, Job, stage
from paper.statistics import Arms, Report, told

SEEDS = swept.FEWER_SEEDS
SETTINGS = "offline, all settings"


def classified(seed: int) -> Job:
    online, offline = (swept.whole("ipo", side, 1, 0.1, seed) for side in ("online", "offline"))
    setup, name = swept.reviews(seed), f"{seed}__classified"
    words = ["classify", "--pairs", online.folder / "online_pairs", "--setup", setup.folder]
    words += ["--policies", online.folder / swept.FINAL, offline.folder / swept.FINAL]
    needs = setup, online, offline
    return stage(name, *words, needs=needs, seconds=15, question="classification")


def arms(seed: int) -> Arms:
    offline = swept.arms(seed)["IPO, offline"]
    return coverage.at_one_rate(seed) | {SETTINGS: offline, "classified": [classified(seed)]}


def within(results: list[dict]) -> float:
    """The correlation of accuracy and golden's win rate over the evaluations of runs."""
    rows = [row for result in results for row in result["evals"] if row["step"] >= 80]
    return correlation([row["accuracy"] for row in rows], [row["win_rate"] for row in rows])


def report(made: Report) -> None:
    found = {seed: result["accuracy"] for seed, (result,) in made.groups["classified"].items()}
    curves: dict[str, dict[float, list[float]]] = {}
    for who in next(iter(found.values()), ()):
        shares = {
            (i + 1) / 10: {seed: right[who][i] for seed, right in found.items()} for i in range(10)
        }
        for share, right in shares.items():
            made.numbers(who, "agreement with golden", share, right)
        curves[who] = {share: [*right.values()] for share, right in shares.items()}
    axis = {"xlabel": "share of the online run", "ylabel": "agreement with golden"}
    title = "Who tells the better of the pairs that online samples?"
    made.draw({"": curves}, "classification", title, (0.5, "chance"), **axis)

    columns, lines = ("accuracy", "chosen_logratio", "rejected_logratio", "win_rate"), []
    for arm in coverage.METHODS:
        last = {seed: results[0]["evals"][-1] for seed, results in made.groups[arm].items()}
        rows = [{seed: row[name] for seed, row in last.items()} for name in columns]
        cells = [told(made.numbers(arm, name, SHORT, row)) for name, row in zip(columns, rows)]
        lines.append([arm, *cells])
    made.table([f"after {SHORT} steps", *columns], lines)
    proxy = {seed: right["proxy"] for seed, right in found.items()}
    decay = {seed: mean(right[-2:]) - mean(right[:2]) for seed, right in proxy.items()}
    made.parts.append(f"The proxy, last fifth less first fifth of the run: {told(decay, '+')}.")
    seven = {seed: within(results) for seed, results in made.groups[SETTINGS].items()}
    made.parts.append(f"Accuracy and win rate within offline runs correlate: {told(seven, '+')}.")
