"""Figure 1: one online setting against a swept offline pool, by the win rate at equal KL and at the peak.

    python -m paper fig1 --list              the runs, what is done, and the estimated core-hours of the rest
    python -m paper fig1 --loss ipo --jobs 2

The offline side may choose its learning rate, beta and number of steps, the online side has the script's defaults. A curve is
one run, and a run of 1x steps is the first part of the one of 5x. Most runs go through their first nat in a few steps, so
their beginning is run again with more evaluations. The win rate at k nats is interpolated in log KL between the two
evaluations of a curve's first crossing, never extrapolated.

Whatever is chosen, the best run at k nats or the best evaluation of all, is chosen on one half of the evaluation prompts and
reported on the other, and the other way round: the best of many noisy numbers is too good otherwise. What is left is that
noise sometimes chooses a run that is not quite the best, which understates the side that has more to choose from.

Far from the data golden is wrong too, and a swept pool finds that out. The embedded world has an exact rule, so everything is
shown twice: chosen and judged by golden, and chosen and judged by the rule, the other's verdict beside it.
"""

import importlib
import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from common import check_ranges, fail, mean_stderr
from paper.frontier import COLORS, NAMES, kl_axis, new_figure, plt, save_figure
from paper.runs import Curve, Run, join, make, show

# learning rates as multiples of the script's default, and betas. IPO's grid holds the paper's own; those of DPO and SLiC are
# reduced: their default beta, a fifth and five times of it, and no larger learning rate, which their losses do not hold back
GRIDS = {
    "ipo": ((0.3, 1, 3), (0.02, 0.05, 0.1, 0.5, 1.0)),
    "dpo": ((0.3, 1), (0.2, 1.0, 5.0)),
    "slic": ((0.3, 1), (0.1, 0.5, 2.5)),
}
PAPER_BETAS = (0.1, 0.5, 1.0)
TIMES = 5  # the long offline runs have so many times the steps of the online run
EVAL_EVERY = {"online": 40, "offline": 80}
BEGINNING = 40  # so many steps are run again with an evaluation every 10
NATS = (1, 2, 3, 4)


@dataclass
class Args:
    loss: Literal["ipo", "dpo", "slic"] = "ipo"
    """whose two scripts"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """every stage is made anew for each of them"""
    starts: str = "starts/reviews-{seed}"
    """folder of the start of each seed, made where it is missing"""
    runs: str = "runs/paper"
    """folder of the runs, which other figures share"""
    out: str = "docs/pictures/fig1_{loss}"
    """picture to write, without its ending"""
    jobs: int = 1
    """processes at a time, one thread each"""
    list: bool = False
    """only list the runs"""


def grid(args: Args, seed: int) -> tuple[Run, list[Run]]:
    """(the online run, the pool of long offline runs) of a seed."""
    start = args.starts.replace("{seed}", str(seed))
    online = importlib.import_module(f"{args.loss}_online").Args
    common = {"start": start, "seed": seed, "root": args.runs}
    rates, betas = GRIDS[args.loss]
    pool = []
    for rate, beta in product(rates, betas):
        options = {"learning_rate": float(f"{rate * online.learning_rate:.3g}"), "beta": beta}
        steps, every = TIMES * online.steps, EVAL_EVERY["offline"]
        pool.append(Run(f"{args.loss}_offline", steps=steps, eval_every=every, options=options, **common))
    return Run(f"{args.loss}_online", steps=online.steps, eval_every=EVAL_EVERY["online"], **common), pool


def beginning(run: Run) -> Run:
    """The run that shows a run's first steps more closely."""
    return replace(run, steps=BEGINNING, eval_every=10)


def load_whole(run: Run) -> Curve:
    return join(beginning(run), run)


def at_kl(curve: Curve, nats: float) -> torch.Tensor | None:
    """(J, P) each prompt's verdicts where the curve first crosses so many nats, linear in log KL between two evaluations.

    None where it never does, or does before its first evaluation after an update: nothing is extrapolated.
    """
    for i, (low, high) in enumerate(zip(curve.kl, curve.kl[1:])):
        if low < nats <= high:
            if i == 0:  # from SFT, at 0 nats
                return None
            share = math.log(nats / low) / math.log(high / low)
            return (1 - share) * curve.wins[i] + share * curve.wins[i + 1]
    return None


def why_not(curves: list[Curve], nats: float) -> str:
    """Why there is no value at so many nats."""
    end = max(max(curve.kl) for curve in curves)
    return f"not comparable, ends at {end:.1f} nats" if end < nats else "passed before the first evaluation"


def best_of(candidates: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """((J, P) verdicts, the two chosen): each half of the prompts by the one that the first judge prefers on the other."""
    stacked = torch.stack(candidates)  # (C, J, P)
    halves = slice(0, None, 2), slice(1, None, 2)
    chosen = [stacked[:, 0, half].mean(1).argmax().item() for half in reversed(halves)]
    values = torch.empty_like(stacked[0])
    for half, i in zip(halves, chosen):
        values[:, half] = stacked[i][:, half]
    return values, chosen


def peak(curves: list[Curve]) -> tuple[torch.Tensor, list[float]]:
    """((J, P) verdicts, KL of the two chosen) of the best evaluation of all curves."""
    values, chosen = best_of([row for curve in curves for row in curve.wins])
    kl = [nats for curve in curves for nats in curve.kl]
    return values, [kl[i] for i in chosen]


def compare(online: Curve, pools: dict[str, list[Curve]]) -> list[list[str]]:
    """The rows of a seed's table: win rates at each KL and at the peak, and how far online is ahead of each pool."""

    def cell(verdicts, sign=""):
        own, *others = (mean_stderr(values, online.prompts) for values in verdicts)
        others = (f", {name} {mean:{sign}.3f}" for name, (mean, _) in zip(online.judges[1:], others))
        return f"{own[0]:{sign}.3f} ± {own[1]:.3f}" + "".join(others)

    at_online = {nats: at_kl(online, nats) for nats in NATS}
    peak_online, kl = peak([online])
    cells = [why_not([online], nats) if value is None else cell(value) for nats, value in at_online.items()]
    rows = [["online", *cells, f"{cell(peak_online)} at {kl[0]:.1f}, {kl[1]:.1f} nats"]]
    for name, curves in pools.items():
        cells, ahead = [], []
        for nats in NATS:
            candidates = [value for curve in curves if (value := at_kl(curve, nats)) is not None]
            value = best_of(candidates)[0] if candidates else None
            cells.append(why_not(curves, nats) if value is None else f"{cell(value)}, best of {len(candidates)} runs")
            ahead.append("-" if value is None or at_online[nats] is None else cell(at_online[nats] - value, "+"))
        value, kl = peak(curves)
        rows.append([name, *cells, f"{cell(value)} at {kl[0]:.1f}, {kl[1]:.1f} nats"])
        rows.append([f"online ahead of {name}", *ahead, cell(peak_online - value, "+")])
    return rows


def print_tables(title: str, online: Curve, pools: dict[str, list[Curve]]) -> None:
    """A table for each judge, who chooses and whose verdict stands first."""
    for first, judge in enumerate(online.judges):
        heading = f"{title}, chosen and judged by {judge}: mean ± standard error over prompts"
        table = Table(title=heading, box=box.MARKDOWN)
        for name in ("win rate", *(f"at {k} nat{'s' * (k > 1)}" for k in NATS), "at the peak (its KL)"):
            table.add_column(name, no_wrap=True)
        views = {name: [curve.judged_by(first) for curve in curves] for name, curves in pools.items()}
        for row in compare(online.judged_by(first), views):
            table.add_row(*row)
        Console(width=500, soft_wrap=True).print(table)


def pools_of(curves: list[Curve], short: int) -> dict[str, list[Curve]]:
    """The offline pool as a whole, and the parts of it that are shown alone."""
    pools = {"offline pool": curves, "offline pool, 1x steps": [curve.until(short) for curve in curves]}
    paper = [curve for curve in curves if curve.run.options["beta"] in PAPER_BETAS]
    return pools | ({"offline, the paper's betas": paper} if curves[0].run.script == "ipo_offline" else {})


def draw(loss: str, results: list[tuple[int, Curve, list[Curve]]], out: str) -> None:
    """A column of panels for each seed, a row for each judge: offline runs, dark for a small beta, and the online run."""
    judges = results[0][1].judges
    size = 1 + 4.6 * len(results), 0.6 + 4.2 * len(judges)
    figure, panels = new_figure(len(judges), len(results), figsize=size, sharex=True, sharey=True)
    betas = sorted({curve.run.options["beta"] for _, _, pool in results for curve in pool})
    shades = dict(zip(betas, plt.get_cmap("Blues")(torch.linspace(1.0, 0.35, len(betas)).tolist())))
    for (j, judge), (column, (seed, online, pool)) in product(enumerate(judges), enumerate(results)):
        axes = panels[j][column]
        for curve in sorted(pool, key=lambda curve: -curve.run.options["beta"]):
            beta = curve.run.options["beta"]
            first = not any(line.get_label() == f"offline, beta {beta:g}" for line in axes.lines)
            label = f"offline, beta {beta:g}" if first else None
            axes.plot(curve.kl[1:], curve.wins[1:, j].mean(1), color=shades[beta], linewidth=1, label=label)
        style = {"color": COLORS["online"], "linewidth": 2.2, "marker": "o", "markersize": 4}
        axes.plot(online.kl[1:], online.wins[1:, j].mean(1), label="online, defaults", **style)
        axes.axhline(0.5, color="grey", linestyle="--", linewidth=1, zorder=0)
        axes.set_title(f"{NAMES[loss]}, seed {seed}, judged by {judge}", fontsize=13, loc="left")
        kl_axis(axes)
        axes.label_outer()
    for row in panels:
        row[0].set_ylabel("win rate against the golden policy")
    panels[0][0].legend(frameon=False, fontsize=10, loc="upper left")
    save_figure(figure, out)


def main(args: Args) -> None:
    check_ranges(args, zero=())
    if len(args.seeds) > 1 and "{seed}" not in args.starts:
        fail(f"--starts {args.starts}: every seed has a start of its own; write {{seed}} where it stands in the folder's name")
    grids = {seed: grid(args, seed) for seed in args.seeds}
    runs = [part for online, pool in grids.values() for run in (online, *pool) for part in (run, beginning(run))]
    if args.list:
        show(runs)
        return
    make(runs, args.jobs)
    results = [(seed, load_whole(online), [load_whole(run) for run in pool]) for seed, (online, pool) in grids.items()]
    draw(args.loss, results, args.out.replace("{loss}", args.loss))
    for seed, online, pool in results:
        print_tables(f"{NAMES[args.loss]}, seed {seed}", online, pools_of(pool, online.run.steps))
