"""What is read off results: win rates at a KL budget, their means over seeds, tables and pictures.

The win rate at a budget of k nats is that of a side's best evaluation with a KL to SFT of at most
k, over all its settings and steps. It is chosen on one half of the prompts and measured on the
other, and the mean of both ways is taken, so choosing among many settings brings no luck along.
A larger budget has all choices of a smaller one, and a run that is worse than the others on both
halves changes nothing. SFT itself, the evaluation before the first step, is in every budget.
"""

import json
from collections.abc import Callable, Iterable
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from matplotlib.ticker import FixedLocator, NullLocator

from paper.frontier import plt
from paper.runs import Job

BUDGETS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12)  # nats
AT = 4  # the budget of claims
JUDGES = {"golden": "by the golden preference model", "truth": "by the ground-truth score"}
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# lines and markers that can be told apart in black and white
STYLES = (("#c2410c", "-", "o"), ("#1d4ed8", "--", "s"), ("#15803d", "-.", "^"))
STYLES += (("#7e22ce", ":", "D"), ("#52525b", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#0e7490", "-", "x"))

Groups = dict[str, dict[int, list[dict]]]  # {arm: {seed: results of all its settings}}
Row = tuple[str, str, int | str, str, float | str, float]  # question, arm, seed, measure, at, value


def load(job: Job, until: int | None = None) -> dict | None:
    """The result of a job, with the evaluations up to a step; None where it has not been made."""
    if not job.result.exists():
        return None
    result = json.loads(job.result.read_text())
    if until is not None:
        result["evals"] = [row for row in result["evals"] if row["step"] <= until]
    return result


def flat(arms: Callable[[int], dict[str, list[Job]]], seeds: Iterable[int]) -> list[Job]:
    """The jobs of all arms and seeds."""
    return [job for seed in seeds for jobs in arms(seed).values() for job in jobs]


def gather(
    arms: Callable[[int], dict[str, list[Job]]], seeds: Iterable[int], until: int | None = None
) -> Groups:
    """Results by arm and seed; a seed counts where all settings of the arm are there."""
    groups: Groups = {}
    for seed in seeds:
        for arm, jobs in arms(seed).items():
            results = [load(job, until) for job in jobs]
            groups.setdefault(arm, {})
            if results and None not in results:
                groups[arm][seed] = results
    return groups


def best(results: list[dict], budget: float, judge: str) -> float | None:
    """The cross-fitted win rate at a budget; None where there are no such verdicts."""
    rows = [row for result in results for row in result["evals"] if row["kl"] <= budget]
    rows = [row for row in rows if row.get(judge)]
    if not rows:
        return None
    ways = ((0, 1), (1, 0))
    return mean(max(rows, key=lambda row: row[judge][half])[judge][other] for half, other in ways)


def interval(values: list[float]) -> tuple[float, float | None]:
    """(mean, half the width of the 95 % t interval for the mean over seeds; None of one seed)."""
    if len(values) < 2:
        return values[0], None
    return mean(values), T[len(values) - 2] * stdev(values) / sqrt(len(values))


def told(values: list[float], sign: str = "") -> str:
    """A cell: mean and interval; a difference (sign "+") whose interval excludes 0 has a star."""
    if not values:
        return "not made yet"
    centre, half = interval(values)
    if half is None:
        return f"{centre:{sign}.3f} (one seed)"
    star = " *" if sign and abs(centre) > half else ""
    return f"{centre:{sign}.3f} [{centre - half:{sign}.3f}, {centre + half:{sign}.3f}]{star}"


def at_budget(by_seed: dict[int, list[dict]], budget: float, judge: str) -> dict[int, float]:
    found = {seed: best(results, budget, judge) for seed, results in by_seed.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def differences(groups: Groups, one: str, other: str, budget: float, judge: str) -> list[float]:
    """One arm less another, within each seed that has both."""
    first, second = (at_budget(groups[arm], budget, judge) for arm in (one, other))
    return [first[seed] - second[seed] for seed in first if seed in second]


def rows_of(question: str, groups: Groups) -> list[Row]:
    """All win rates at budgets, for the CSV file."""
    return [
        (question, arm, seed, f"win rate, {judge}", budget, value)
        for arm, by_seed in groups.items()
        for judge in JUDGES
        for budget in BUDGETS
        for seed, value in at_budget(by_seed, budget, judge).items()
    ]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def arms_table(groups: Groups, against: str, at: float = AT) -> str:
    """A row an arm: win rates at a budget, and how far they are from one arm's, by each judge."""
    head = ["arm", "seeds"]
    for judge in JUDGES:
        head += [f"win rate at {at:g} nats, {judge}", f"less {against}, {judge}"]
    rows = []
    for arm, by_seed in groups.items():
        rows.append([arm, len(by_seed)])
        for judge in JUDGES:
            rows[-1].append(told(list(at_budget(by_seed, at, judge).values())))
            apart = told(differences(groups, arm, against, at, judge), "+")
            rows[-1].append("" if arm == against else apart)
    return table(head, rows)


def draw(
    panels: dict[str, dict[str, dict[float, list[float]]]], path: Path, title: str, **axis
) -> str:
    """A picture: {panel: {line: {x: values over seeds}}}, means with 95 % bands; "" of no values.

    axis: what axes.set takes. Returns the picture's line in Markdown.
    """
    if not any(any(line.values()) for lines in panels.values() for line in lines.values()):
        return ""
    size = {"figsize": (8, 3.7), "sharey": True, "layout": "constrained"}
    figure, all_axes = plt.subplots(1, len(panels), squeeze=False, **size)
    for axes, (panel, lines) in zip(all_axes[0], panels.items()):
        for (name, line), (color, dashes, marker) in zip(lines.items(), STYLES):
            points = sorted((x, *interval(values)) for x, values in line.items() if values)
            xs, centre = [x for x, _, _ in points], [middle for _, middle, _ in points]
            style = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 5}
            axes.plot(xs, centre, label=name, markerfacecolor="none", **style)
            low = [middle - (half or 0) for _, middle, half in points]
            high = [middle + (half or 0) for _, middle, half in points]
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(**axis)
        axes.set_title(panel, fontsize=11, loc="left")
        axes.tick_params(labelsize=9)
        ticks = sorted({x for line in lines.values() for x in line})
        axes.xaxis.set_major_locator(FixedLocator(ticks, nbins=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.3g}")
    for axes in all_axes[0][1:]:
        axes.set_ylabel("")
    all_axes[0][0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)  # 1,200 pixels wide
    plt.close(figure)
    return f"![{title}](pictures/{path.name})"


def draw_arms(groups: Groups, path: Path, title: str) -> str:
    """Win rate as a function of the KL budget, a line an arm, by golden and by ground truth."""
    panels = {}
    for judge, name in JUDGES.items():
        budgets = {
            k: {arm: at_budget(some, k, judge) for arm, some in groups.items()} for k in BUDGETS
        }
        panels[name] = {
            arm: {k: list(found[arm].values()) for k, found in budgets.items()} for arm in groups
        }
    axis = {"xscale": "log", "xlabel": "KL budget in nats, log scale"}
    return draw(panels, path, title, ylabel="win rate; parity is 0.5", **axis)


def arms_report(
    question: str, groups: Groups, against: str, pictures: Path, title: str, hidden=()
) -> tuple[str, list[Row]]:
    """A picture and a table of arms, and their numbers. hidden: arms that are not drawn."""
    shown = {arm: some for arm, some in groups.items() if arm not in hidden}
    picture = draw_arms(shown, pictures / f"{question}.png", title)
    parts = [part for part in (picture, arms_table(groups, against)) if part]
    return "\n\n".join(parts), rows_of(question, groups)
