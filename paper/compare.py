"""How runs are compared: win rates at equal KL and at the peak, differences seed by seed, and what may be said of them.

The win rate at k nats is interpolated in log KL between the two evaluations of a curve's first crossing, never extrapolated.
A curve that crosses before its first evaluation has none at that KL, even if it comes back: so all curves that are compared
have their first evaluations at the same steps.
Whatever is chosen, the best run at k nats or the best evaluation of all, is chosen on one half of the evaluation prompts and
reported on the other, and the other way round: the best of many noisy numbers is too good otherwise. What is left is that
noise sometimes chooses a run that is not quite the best, which understates the side that has more to choose from.
"""

import math
from dataclasses import dataclass, replace

import scipy.stats
import torch

from paper.frontier import COLORS, kl_axis, new_figure, save_figure
from paper.jobs import Job, read

NATS = (1, 2, 3, 4)  # where curves are compared at equal KL


@dataclass
class Curve:
    """The evaluations of one run: E of them, in the order of steps."""

    evals: list[dict]
    wins: torch.Tensor  # (E, J, P) against the baseline: 1, 0 or a half
    judges: list[str]  # (J,) whose verdicts: golden's and, in the embedded world, the exact rule's

    @property
    def kl(self) -> list[float]:
        return [row["kl"] for row in self.evals]

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.evals]

    def at(self, steps: set[int]) -> "Curve":
        """The evaluations at these steps alone."""
        kept = [i for i, step in enumerate(self.steps) if step in steps]
        return replace(self, evals=[self.evals[i] for i in kept], wins=self.wins[kept])

    def until(self, step: int) -> "Curve":
        """The curve of a shorter run: the learning rate is constant, so a shorter run is a prefix of a longer one."""
        return self.at(set(range(step + 1)))

    def judged_by(self, first: int) -> "Curve":
        """The same with another judge as the first, who chooses."""
        return replace(self, wins=self.wins.roll(-first, 1), judges=self.judges[first:] + self.judges[:first])


Groups = dict[str, dict[int, list[Curve]]]  # {what they are: {seed: curves}}


def load_curve(job: Job, verdicts: dict | None = None) -> Curve:
    """A run's evaluations and the verdicts behind them, from its kept result, or others of the same form."""
    row = read(job)
    verdicts = verdicts or row["wins"]
    judges = [name for name, digits in verdicts.items() if digits]
    wins = torch.tensor([[[int(d) / 2 for d in digits] for digits in verdicts[name]] for name in judges])
    return Curve(row["evals"], wins.double().transpose(0, 1), judges)


def join(beginning: Job, run: Job) -> Curve:
    """A run's curve with the denser evaluations of its beginning, which was run again: the same training to the byte."""
    if read(beginning)["metrics"]["first"] != read(run)["metrics"]["first"]:
        raise SystemExit(f"error: {beginning.result} is not the beginning of {run.result}; make both on one machine")
    return behind(load_curve(beginning), load_curve(run))


def behind(first: Curve, rest: Curve) -> Curve:
    """The first curve, and of the rest what comes after its steps."""
    after = slice(sum(row["step"] <= first.evals[-1]["step"] for row in rest.evals), None)
    return replace(rest, evals=first.evals + rest.evals[after], wins=torch.cat([first.wins, rest.wins[after]]))


def at_kl(curve: Curve, nats: float, every: bool = False) -> list[torch.Tensor]:
    """[(J, P)] each prompt's verdicts where the curve first crosses so many nats, linear in log KL between two evaluations.

    Empty where it never does, or does before its first evaluation after an update: nothing is extrapolated. every: at each
    crossing, up and down, those left out for which there are no two evaluations.
    """
    steps = list(zip(curve.kl, curve.kl[1:]))
    crossings = [i for i, (old, new) in enumerate(steps) if old < nats <= new or (every and new <= nats < old)]
    values = []
    for i in crossings if every else crossings[:1]:
        if i > 0:  # else it comes from SFT, at 0 nats
            share = math.log(nats / curve.kl[i]) / math.log(curve.kl[i + 1] / curve.kl[i])
            values.append((1 - share) * curve.wins[i] + share * curve.wins[i + 1])
    return values


def best_of(candidates: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """((J, P) verdicts, the two chosen): each half of the prompts by the one that the first judge prefers on the other."""
    stacked = torch.stack(candidates)  # (C, J, P)
    halves = slice(0, None, 2), slice(1, None, 2)
    chosen = [stacked[:, 0, half].mean(1).argmax().item() for half in reversed(halves)]
    values = torch.empty_like(stacked[0])
    for half, i in zip(halves, chosen):
        values[:, half] = stacked[i][:, half]
    return values, chosen


def best_at_kl(curves: list[Curve], nats: float, every: bool = False) -> torch.Tensor | None:
    """(J, P) the best of all curves that cross so many nats; None where none does. every: of all their crossings."""
    candidates = [value for curve in curves for value in at_kl(curve, nats, every)]
    return best_of(candidates)[0] if candidates else None


def peak(curves: list[Curve]) -> tuple[torch.Tensor, float]:
    """((J, P) verdicts, mean KL of the two chosen) of the best evaluation of all curves."""
    values, chosen = best_of([row for curve in curves for row in curve.wins])
    kl = [nats for curve in curves for nats in curve.kl]
    return values, sum(kl[i] for i in chosen) / 2


def ahead_at_kl(first: list[Curve], second: list[Curve], levels=NATS, every: bool = False) -> torch.Tensor | None:
    """(J, P) how far the first curves are ahead at equal KL: the mean over those levels, in nats, that both reach."""
    pairs = [(best_at_kl(first, nats, every), best_at_kl(second, nats, every)) for nats in levels]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return torch.stack(differences).mean(0) if differences else None


def ahead_at_peak(first: list[Curve], second: list[Curve]) -> torch.Tensor:
    """(J, P) how far the first curves are ahead, each side at the best of its evaluations."""
    return peak(first)[0] - peak(second)[0]


def ahead_within(first: list[Curve], second: list[Curve], levels=NATS) -> torch.Tensor:
    """(J, P) how far the first curves are ahead with KL as a budget: each side at the best of its evaluations with at most so
    many nats, the mean over those levels. SFT itself, at 0 nats, is one of them, so that every curve has some."""

    def best(side: list[Curve], nats: float) -> torch.Tensor:
        return peak([c.at({step for step, kl in zip(c.steps, c.kl) if kl <= nats}) for c in side])[0]

    return torch.stack([best(first, nats) - best(second, nats) for nats in levels]).mean(0)


# -------------------------------------------------------------------------------------------------------------- statistics


@dataclass
class Effect:
    """A difference that a claim is about, seed by seed."""

    experiment: str
    claim: str  # the paper's, in the words of what is computed
    values: dict[int, float]  # one for each seed; a seed where the sides cannot be compared has none
    errors: dict[int, float]  # standard errors over prompts, where there are any
    sign: int = 1  # of the difference if the claim holds; 0: the paper does not say
    primary: bool = False
    seeds: tuple[int, ...] | None = None  # all of those asked for, where some of them may have no value

    @property
    def mean(self) -> float:
        return sum(self.values.values()) / len(self.values)

    @property
    def half_width(self) -> float:
        """Of the 95 % t interval for the mean over seeds."""
        values = torch.tensor(list(self.values.values()), dtype=torch.float64)
        count = len(values)
        return float("inf") if count < 2 else scipy.stats.t.ppf(0.975, count - 1) * (values.std() / math.sqrt(count)).item()

    @property
    def verdict(self) -> str:
        if not self.values:
            return "not comparable"
        if not self.sign or abs(self.mean) <= self.half_width:
            return "undecided" if self.sign else "-"
        return "holds" if self.mean * self.sign > 0 else "does not hold"


def effect(experiment: str, claim: str, differences: dict[int, torch.Tensor | None], **options) -> Effect:
    """An Effect from each seed's (J, P) differences by prompt, judged by the first judge."""
    kept = {seed: values[0] for seed, values in differences.items() if values is not None}
    errors = {seed: (values.std() / math.sqrt(len(values))).item() for seed, values in kept.items()}
    means = {seed: values.mean().item() for seed, values in kept.items()}
    return Effect(experiment, claim, means, errors, seeds=tuple(differences), **options)


def looked_at_alike(first: list[Curve], second: list[Curve]) -> tuple[list[Curve], list[Curve]]:
    """Two sides that train equally long, at the steps at which both were evaluated: neither has more to choose from."""
    steps = [set().union(*(curve.steps for curve in side)) for side in (first, second)]
    if max(steps[0]) != max(steps[1]):
        return first, second
    return tuple([curve.at(steps[0] & steps[1]) for curve in side] for side in (first, second))


def compared(experiment: str, groups: Groups, first: str, second: str, told: str = "", **options) -> list[Effect]:
    """How far one group is ahead of another, at equal KL and at the peak; a seed that one of them lacks has no value."""
    seeds = [seed for seed in groups[first] if seed in groups[second]]
    if len({curve.steps[1] for side in (first, second) for seed in seeds for curve in groups[side][seed]}) > 1:
        raise ValueError(f"{first} and {second}: curves with first evaluations at different steps do not compare at equal KL")
    told = told or f"{first} ahead of {second}"
    sides = {seed: looked_at_alike(groups[first][seed], groups[second][seed]) for seed in seeds}
    effects = []
    for where, ahead in (("equal KL", ahead_at_kl), ("the peak", ahead_at_peak)):
        differences = {seed: ahead(*sides[seed]) if seed in sides else None for seed in groups[first] | groups[second]}
        effects.append(effect(experiment, f"{told}, at {where}", differences, **options))
    return effects


def judged(groups: Groups, first: int) -> Groups:
    """The same curves with another judge, who chooses and is reported."""
    return {n: {s: [c.judged_by(first) for c in curves] for s, curves in by_seed.items()} for n, by_seed in groups.items()}


def by_judges(groups: Groups) -> list[tuple[str, Groups]]:
    """What each judge says: (words behind a claim, none for golden's verdict; the groups with this judge as the first)."""
    return [(f", by the {judge}" * bool(i), judged(groups, i)) for i, judge in enumerate(judges_of(groups))]


def on_held_out(groups: Groups) -> Groups:
    """Golden's win rates in place of single verdicts, two a judge: on training prompts, by which everything is chosen, and on
    held-out ones; of a difference between two sides the second number counts."""

    def rates(curve: Curve) -> Curve:
        wins = [[[row["win_rate"], row["win_rate_heldout"]]] for row in curve.evals]
        return replace(curve, wins=torch.tensor(wins, dtype=torch.float64), judges=curve.judges[:1])

    return {name: {seed: list(map(rates, curves)) for seed, curves in by_seed.items()} for name, by_seed in groups.items()}


# ---------------------------------------------------------------------------------------------------------------- reports


@dataclass
class Report:
    """What came out of an experiment."""

    text: str  # tables and pictures, in Markdown
    effects: list[Effect]


def judges_of(groups: Groups) -> list[str]:
    return next(iter(next(iter(groups.values())).values()))[0].judges


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    values = torch.tensor(values, dtype=torch.float64)
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def table_of(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def group_table(groups: Groups) -> str:
    """Win rates of each group at equal KL and at the peak, mean and spread over seeds; a table for each judge that chooses."""
    judges, tables = judges_of(groups), []
    for first, judge in enumerate(judges):
        rows = []
        for name, by_seed in judged(groups, first).items():
            seeds, cells = list(by_seed.values()), []
            for nats in NATS:
                values = [v[0].mean().item() for curves in seeds if (v := best_at_kl(curves, nats)) is not None]
                some = f" ({len(values)} of {len(seeds)} seeds)" if 0 < len(values) < len(seeds) else ""
                cells.append(spread(values) + some if values else "-")
            peaks = [peak(curves) for curves in seeds]
            others = [f"{other} {spread([v[j].mean().item() for v, _ in peaks])}" for j, other in rotated(judges, first)]
            kl = sum(kl for _, kl in peaks) / len(peaks)
            behind = f" ({', '.join(others)})" if others else ""
            cells.append(f"{spread([v[0].mean().item() for v, _ in peaks])}{behind} at {kl:.1f} nats")
            rows.append([name, *cells])
        tables.append(table_of([f"by {judge}", *(f"at {k} nat{'s' * (k > 1)}" for k in NATS), "at the peak"], rows))
    return "\n\n".join(tables)


def rotated(judges: list[str], first: int) -> list[tuple[int, str]]:
    """(index, name) of the judges behind the one that was moved to the front."""
    return list(enumerate(judges[first:] + judges[:first]))[1:]


STYLES = [COLORS["offline"], "#0891b2", "#7c3aed", "#64748b", "#be185d", "#15803d"]


def draw(title: str, groups: Groups, out: str) -> None:
    """KL against win rate, a panel for each judge; every seed's curves, one colour a group; a group named online is orange."""
    judges = judges_of(groups)
    figure, (panels,) = new_figure(1, len(judges), figsize=(1 + 6.4 * len(judges), 5.6), sharey=True)
    colors = iter(STYLES)
    colors = {name: COLORS["online"] if name.startswith("online") else next(colors) for name in groups}
    for j, (judge, axes) in enumerate(zip(judges, panels)):
        for name, by_seed in reversed(groups.items()):
            curves = [curve for some in by_seed.values() for curve in some]
            pool = len(curves) > 2 * len(by_seed)  # its evaluations are a cloud, as in the paper; single runs are lines
            style = {"marker": "o", "markersize": 2.4, "linestyle": "none"} if pool else {"linewidth": 1.8}
            for i, curve in enumerate(curves):
                label = name if i == 0 else None
                axes.plot(curve.kl[1:], curve.wins[1:, j].mean(1), color=colors[name], label=label, alpha=0.8, **style)
        axes.axhline(0.5, color="grey", linestyle="--", linewidth=1, zorder=0)
        axes.set_title(f"{title}, judged by {judge}", fontsize=12, loc="left")
        kl_axis(axes)
    panels[0].set_ylabel("win rate against the golden policy")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[0].legend(handles[::-1], labels[::-1], frameon=False, fontsize=10, loc="upper left")
    save_figure(figure, out)
