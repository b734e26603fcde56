"""Figure 13: how much order matters. Offline learning from the stream of an online run, shuffled more and more.

    python -m paper fig13 --list              the runs, what is done, and the estimated core-hours of the rest
    python -m paper fig13 --jobs 2

Every pair that the online run trained on is kept, with its label. Offline runs at the same settings read these pairs: in their
order (which is the online run again, Appendix F), shuffled within windows of a few batches, of many, and all of them (the pool
of Figure 4 at one setting). One more reads D_golden. What differs is only when the policy meets which pair.
"""

import importlib
from dataclasses import dataclass
from typing import Literal

from common import check_ranges, fail
from paper.fig1 import print_tables
from paper.frontier import COLORS, NAMES, kl_axis, new_figure, plt, save_figure
from paper.runs import Curve, Run, load_curve, make, show

LEVELS = ("none", "4", "50", "all")  # of --shuffle; the paper: none, 4 and 500 of 4,000 batches, all


@dataclass
class Args:
    loss: Literal["ipo", "dpo", "slic", "bo2"] = "ipo"
    """whose two scripts"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """every stage is made anew for each of them"""
    starts: str = "starts/reviews-{seed}"
    """folder of the start of each seed, made where it is missing"""
    runs: str = "runs/paper"
    """folder of the runs, which other figures share"""
    out: str = "docs/pictures/fig13_{loss}"
    """picture to write, without its ending"""
    jobs: int = 1
    """processes at a time, one thread each"""
    list: bool = False
    """only list the runs"""


def online_run(args: Args, seed: int) -> Run:
    """The online run of a seed at the script's defaults, which keeps its stream."""
    steps = importlib.import_module(f"{args.loss}_online").Args.steps
    start, options = args.starts.replace("{seed}", str(seed)), {"save_stream": True}
    return Run(f"{args.loss}_online", start, seed, steps, max(1, steps // 10), options, args.runs)


def offline_runs(online: Run) -> dict[str, Run]:
    """What learns from its stream at each level of shuffling, and from D_golden, at the same settings."""
    stream = {"dataset": str(online.folder / "stream")}
    options = {f"stream, shuffle {level}": stream | {"shuffle": level} for level in LEVELS} | {"D_golden": {}}
    script, rest = online.script.replace("online", "offline"), (online.steps, online.eval_every)
    return {name: Run(script, online.start, online.seed, *rest, each, online.root) for name, each in options.items()}


def draw(args: Args, results: list[tuple[int, Curve, dict[str, Curve]]]) -> None:
    """A panel for each seed and judge: the stream in blue, the darker the more in order; online and D_golden beside it."""
    judges = results[0][1].judges
    size = 1 + 4.6 * len(results), 0.6 + 4.2 * len(judges)
    figure, panels = new_figure(len(judges), len(results), figsize=size, sharex=True, sharey=True)
    shades = plt.get_cmap("Blues")([1.0, 0.8, 0.6, 0.4])
    styles = {f"stream, shuffle {level}": {"color": shade, "linewidth": 1.6} for level, shade in zip(LEVELS, shades)}
    styles |= {"D_golden": {"color": "grey", "linewidth": 1.6, "linestyle": ":"}}
    styles = {"online": {"color": COLORS["online"], "linewidth": 4, "alpha": 0.45}} | styles
    for j, judge in enumerate(judges):
        for column, (seed, online, curves) in enumerate(results):
            axes = panels[j][column]
            for name, curve in ({"online": online} | curves).items():
                axes.plot(curve.kl[1:], curve.wins[1:, j].mean(1), label=name, **styles[name])
            axes.axhline(0.5, color="grey", linestyle="--", linewidth=1, zorder=0)
            axes.set_title(f"{NAMES[args.loss]}, seed {seed}, judged by {judge}", fontsize=13, loc="left")
            kl_axis(axes)
            axes.label_outer()
    for row in panels:
        row[0].set_ylabel("win rate against the golden policy")
    panels[0][0].legend(frameon=False, fontsize=10, loc="upper left")
    save_figure(figure, args.out.replace("{loss}", args.loss))


def main(args: Args) -> None:
    check_ranges(args, zero=())
    if len(args.seeds) > 1 and "{seed}" not in args.starts:
        fail(f"--starts {args.starts}: every seed has a start of its own; write {{seed}} where it stands in the folder's name")
    online = {seed: online_run(args, seed) for seed in args.seeds}
    if args.list:
        show([run for first in online.values() for run in (first, *offline_runs(first).values())])
        return
    make([*online.values()], args.jobs)
    offline = {seed: offline_runs(run) for seed, run in online.items()}
    make([run for runs in offline.values() for run in runs.values()], args.jobs)
    results = []
    for seed, run in online.items():
        curves = {name: load_curve(each) for name, each in offline[seed].items()}
        results.append((seed, load_curve(run), curves))
    draw(args, results)
    for seed, first, curves in results:
        print_tables(f"{NAMES[args.loss]}, seed {seed}", first, {name: [curve] for name, curve in curves.items()})
        doubt = "" if is_same(first, curves["stream, shuffle none"]) else ", but not to the bit"
        print(f"seed {seed}: the stream in its order is the online run{doubt}")


def is_same(online: Curve, tandem: Curve) -> bool:
    """Whether two runs logged the same training."""
    return (online.run.folder / "metrics.jsonl").read_bytes() == (tandem.run.folder / "metrics.jsonl").read_bytes()
