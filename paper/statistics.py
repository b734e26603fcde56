"""What is read off results: win rates at a KL budget, their means over seeds, tables and pictures.

The win rate at a budget of k nats is that of a side's best evaluation with a KL to SFT of at most
k, over all its settings and steps. It is chosen on one half of the prompts and measured on the
other, and the mean of both ways is taken, so choosing among many settings brings no luck along.
A larger budget has all choices of a smaller one, and a run that is worse than the others on both
halves changes nothing. SFT itself, the evaluation before the first step, is in every budget.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import product, zip_longest
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from paper.frontier import grey_line, plt
from paper.runs import SHORT, Job

BUDGETS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12)  # nats
AT = 4  # the budget of claims
BY = {"golden": "by the golden preference model", "truth": "by the ground-truth score"}
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# lines and markers that can be told apart in black and white
STYLES = (("#c2410c", "-", "o"), ("#1d4ed8", "--", "s"), ("#15803d", "-.", "^"))
STYLES += (("#7e22ce", ":", "D"), ("#52525b", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#0e7490", "-", "x"))

Arms = dict[str, list[Job]]  # {arm: runs with all its settings}, of one seed
Groups = dict[str, dict[int, list[dict]]]  # {arm: {seed: their results}}


def flat(arms: Callable[[int], Arms], seeds: Iterable[int]) -> list[Job]:
    """The jobs of all arms, setting by setting, so that an early end leaves whole settings."""
    by_seed = [[job for jobs in arms(seed).values() for job in jobs] for seed in seeds]
    return [*dict.fromkeys(job for same in zip_longest(*by_seed) for job in same if job)]


def gather(arms: Callable[[int], Arms], seeds: Iterable[int], until: int | None = SHORT) -> Groups:
    """Results by arm and seed; a seed counts where all settings of the arm are there.

    until: of the frontier's runs, which are longer than others, the evaluations up to that step.
    """
    groups: Groups = {}
    for seed in seeds:
        for arm, jobs in arms(seed).items():
            groups.setdefault(arm, {})
            if jobs and all(job.result.exists() for job in jobs):
                groups[arm][seed] = results = [json.loads(job.result.read_text()) for job in jobs]
                for job, result in zip(jobs, results):
                    if until and job.question in ("frontier", "pilot"):
                        result["evals"] = [e for e in result["evals"] if e["step"] <= until]
    return groups


def sides(arms: Iterable[str]) -> list[tuple[str, str]]:
    """(online, offline) of the arms that have both sides."""
    pairs = {arm: arm.replace("online", "offline") for arm in arms}
    return [(one, other) for one, other in pairs.items() if one != other and other in pairs]


def best(results: list[dict], budget: float, by: str) -> float | None:
    """The cross-fitted win rate at a budget; None where there are no such verdicts."""
    rows = [row for result in results for row in result.get("evals", ()) if row["kl"] <= budget]
    rows = [row for row in rows if row.get(by)]
    if not rows:
        return None
    ways = ((0, 1), (1, 0))
    return mean(max(rows, key=lambda row: row[by][half])[by][other] for half, other in ways)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of the 95 % t interval for the mean over seeds; 0 of one seed)."""
    if len(values) < 2:
        return values[0], 0
    return mean(values), T[len(values) - 2] * stdev(values) / sqrt(len(values))


def told(values: dict[int, float], sign: str = "") -> str:
    """A cell, mean and interval over seeds. A difference has the sign "+", and a star where its
    interval excludes 0."""
    if not values:
        return "not made yet"
    centre, half = interval([*values.values()])
    if len(values) == 1:
        return f"{centre:{sign}.3f} (one seed)"
    star = " *" if sign and abs(centre) > half else ""
    return f"{centre:{sign}.3f} [{centre - half:{sign}.3f}, {centre + half:{sign}.3f}]{star}"


class Question(NamedTuple):
    """An experiment: its runs on a seed, what is written of them, and its seeds."""

    arms: Callable[[int], Arms]
    report: Callable[["Report"], None]
    seeds: Sequence[int]
    until: int | None = SHORT  # as `gather` has it


class Report:
    """What a question writes: pictures, and parts of the page in Markdown."""

    def __init__(self, question: str, groups: Groups, pictures: Path, seeds: int = 2):
        self.question, self.groups, self.pictures, self.seeds = question, groups, pictures, seeds
        self.parts: list[str] = []
        self.claims: list[list] = []  # rows of the scorecard
        self.numbers: list[tuple] = []  # rows of the CSV file

    def won(self, arm: str, by: str, budget: float = AT) -> dict[int, float]:
        """{seed: win rate at a budget}."""
        found = {seed: best(some, budget, by) for seed, some in self.groups[arm].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def lead(self, one: str, other: str, by: str, budget: float = AT) -> dict[int, float]:
        """{seed: win rate of one arm less that of another} of the seeds that have both."""
        first, second = self.won(one, by, budget), self.won(other, by, budget)
        return {seed: first[seed] - second[seed] for seed in first if seed in second}

    def cell(self, arm: str, measure: str, values: dict, sign: str = "", at: float | str = ""):
        """As `told` has it; the values go to the CSV file."""
        for seed, value in values.items():
            self.numbers.append((self.question, arm, seed, measure, at, f"{value:.5g}"))
        return told(values, sign)

    def table(self, head: Iterable, lines: Iterable[Iterable], text: str = "") -> None:
        lines = [[*head], ["---"] * len([*head]), *lines]
        rows = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self.parts.append(f"{text}\n\n{rows}".strip())

    def compare(self, pairs: Iterable[tuple[str, str]], at: float = AT) -> None:
        """A row for each pair of arms: the one's win rate at a budget, and how far it is ahead of
        the other, over the seeds that have both."""
        lines, head = [], ["arm", "against", "seeds"]
        head += [f"{name} at {at} nats, {by}" for by in BY for name in ("win rate", "ahead")]
        for one, other in pairs:
            lines.append([one, other, len(self.lead(one, other, "golden", at))])
            for by in BY:
                lines[-1] += [told(self.won(one, by, at))]
                lines[-1] += [told(self.lead(one, other, by, at), "+")]
        self.table(head, lines)

    def budgets(self, pairs: Iterable[tuple[str, str]], budgets: Iterable[float]) -> None:
        """A row for each pair and verdict: win rates at 4 nats, and leads at each budget, over the
        seeds that have both."""
        lines = []
        for (one, other), by in product(pairs, BY):
            seeds = self.lead(one, other, by)
            if seeds or by == "golden":  # there may be no ground-truth score
                leads = [told(self.lead(one, other, by, k), "+") for k in budgets]
                first, second = (self.won(arm, by) for arm in (one, other))
                cells = [told({seed: won[seed] for seed in seeds}) for won in (first, second)]
                lines.append([one, by, cells[0], other, cells[1], len(seeds), *leads])
        head = ["arm", "by", f"win rate at {AT} nats", "against", "its win rate", "seeds"]
        self.table([*head, *(f"ahead at {k} nat{'s' * (k > 1)}" for k in budgets)], lines)

    def claim(self, figure: str, text: str, sign: int, golden: dict, truth: dict | None = None):
        """A row of the scorecard: a claim, and its effect on each seed, a difference. sign: of the
        effect that is claimed, 0 where none is. The interval by golden decides, over all seeds."""
        verdict = "not made yet"
        if 0 < len(golden) < self.seeds:
            verdict = f"not decided yet: {len(golden)} of {self.seeds} seeds"
        elif golden:
            centre, half = interval([*golden.values()])
            verdict = "yes" if centre * sign > 0 else "no"
            if abs(centre) <= half:
                verdict = "undecided" if sign else "consistent"
        effects = {"effect, golden": golden, "effect, truth": truth or {}}
        cells = [self.cell(text, name, effect, "+") for name, effect in effects.items() if effect]
        cells += [""] * (2 - len(cells))
        self.claims.append([figure, text, *cells, len(golden), verdict])

    def ahead(self, figure: str, text: str, sign: int, one: str, other: str, at: float = AT):
        """The claim that one arm is ahead of another at a budget."""
        self.claim(figure, text, sign, *(self.lead(one, other, by, at) for by in BY))

    def curves(self, arms: Iterable[str], title: str, name: str = "") -> None:
        """Win rate as a function of the KL budget, a line an arm, by golden and by ground truth."""
        places = {0.25: 0} | {k: k for k in BUDGETS}  # a log axis has no 0, which is SFT
        panels = {
            text: {
                arm: {x: [*self.won(arm, by, k).values()] for x, k in places.items()}
                for arm in arms
            }
            for by, text in BY.items()
        }
        axis = {"xlabel": "KL budget in nats, log scale", "ylabel": "win rate over the baseline"}
        axis |= {"ylim": (0, 1), "xscale": "log"}  # the scale first: it sets ticks of its own
        axis |= {"xticks": [*places], "xticklabels": ["SFT", *BUDGETS]}
        self.draw(panels, name or self.question, title, (0.5, "parity"), **axis)

    @plt.rc_context({"font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11})
    def draw(self, panels: dict, name: str, title: str, level, join=True, **axis) -> None:
        """A picture, {panel: {line: {x: values over seeds}}}: means with 95 % bands.

        level: (height, name) of a grey line, or None. axis: what axes.set takes. No panel of no
        values, and no picture of no panel.
        """
        panels = {
            panel: lines
            for panel, lines in panels.items()
            if any(any(line.values()) for line in lines.values())
        }
        if not panels:
            return
        size = {"figsize": (8, 3.7), "sharey": True, "layout": "constrained"}
        figure, all_axes = plt.subplots(1, len(panels), squeeze=False, **size)
        for axes, (panel, lines) in zip(all_axes[0], panels.items()):
            for (arm, line), (color, dashes, marker) in zip(lines.items(), STYLES):
                points = sorted((x, *interval(values)) for x, values in line.items() if values)
                if not points:
                    continue
                xs, centre, half = zip(*points)
                low, high = ([c + s * h for c, h in zip(centre, half)] for s in (-1, 1))
                style = {"color": color, "linestyle": dashes if join else "", "marker": marker}
                axes.plot(xs, centre, label=arm, markersize=5, markerfacecolor="none", **style)
                axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
            if level:
                grey_line(axes, *level)
            axes.set(**axis)
            axes.minorticks_off()
            axes.set_title(panel, loc="left")
            axes.label_outer()
        all_axes[0][0].legend(frameon=False)
        figure.suptitle(title, x=0.01, ha="left")
        self.pictures.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.pictures / f"{name}.png", dpi=150)  # 1,200 pixels wide
        plt.close(figure)
        self.parts.append(f"![{title}](pictures/{name}.png)")
