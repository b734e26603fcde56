"""Figures 10, 11 and 14: does the gap close with larger policies? Three sizes, each four times the one before.

One SFT a size on the same data; the same judges and the same golden policy for all. Online IPO, offline IPO on D_golden and on
the online run's shuffled stream at two learning rates (0.3 and 1 times the default), as many steps. Performance is the 90 %
quantile of a run's win rates, of a method's better run, relative to online's at the same size (Figure 11), and as it is
(Figure 14). (The paper pools all experiments of a method, which would lower whoever tries more settings.)

The paper: over-optimisation and the gap persist at all sizes, online's peak rises with the size, and the shuffled stream
closes most of the gap on two of three tasks.
"""

from paper.compare import Curve, Effect, Groups, Report, ahead_at_kl, by_judges, effect, load_curve, spread, table_of
from paper.fig1 import online_run
from paper.frontier import COLORS, new_figure, save_figure
from paper.jobs import Job, Part, World, run_of

SEEDS = (1, 2, 3)
SIZES = {"28 thousand": "untrained_small", "115 thousand": None, "467 thousand": "untrained_golden"}
RATES = (0.3, 1)
METHODS = ("online", "offline on its shuffled stream", "offline on D_golden")


def sft(world: World, seed: int, untrained: str) -> Job:
    start = world.start(seed)
    told = (
        {"model": Part(start, untrained), "dataset": Part(start, "d_initial"), "seed": seed}
        | world.stage("sft")
        | world.limits
    )
    return Job(world, seed, f"sft__{untrained}", "prepare.sft", told)


def runs(world: World, seed: int, size: str) -> dict[str, list[Job]]:
    """The runs of each method with a policy of one size."""
    start, untrained = world.start(seed), SIZES[size]
    label, model = (f"__{untrained}", {"model": Part(sft(world, seed, untrained))}) if untrained else ("", {})
    online = online_run(start, label=label, **model)
    offline = []
    for name, data in (("stream", {"dataset": Part(online, "stream")}), ("golden", {})):
        for rate in RATES:
            options = model | data | {"learning_rate": float(f"{rate * world.learning_rate:.3g}")}
            offline.append(run_of(start, "ipo_offline", f"ipo_offline{label}__{name}__rate={rate:g}", **options))
    return dict(zip(METHODS, ([online], offline[: len(RATES)], offline[len(RATES) :])))


def jobs(world: World, seed: int) -> list[Job]:
    return [job for size in SIZES for some in runs(world, seed, size).values() for job in some]


def best(curves: list[Curve]) -> float:
    """The 90 % quantile of the first judge's win rates over a run's evaluations, of the best run."""
    return max(curve.wins[1:, 0].mean(1).quantile(0.9).item() for curve in curves)


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    curves = {s: {size: runs(world, s, size) for size in SIZES} for s in seeds}
    groups: dict[str, Groups] = {
        size: {method: {s: list(map(load_curve, curves[s][size][method])) for s in seeds} for method in METHODS}
        for size in SIZES
    }
    values = {
        (by, size, method): {s: best(some) for s, some in by_seed.items()}
        for size in SIZES
        for by, same in by_judges(groups[size])
        for method, by_seed in same.items()
    }
    figure, ((absolute, relative),) = new_figure(1, 2, figsize=(12, 4.6))
    for method, color in zip(METHODS, (COLORS["online"], "#0891b2", COLORS["offline"])):
        for i, s in enumerate(seeds):
            heights, label = [values["", size, method][s] for size in SIZES], method if i == 0 else None
            absolute.plot(list(SIZES), heights, color=color, marker="o", markersize=4, label=label, alpha=0.8)
            online = [values["", size, "online"][s] for size in SIZES]
            shares = [height / max(own, 1e-9) for height, own in zip(heights, online)]
            relative.plot(list(SIZES), shares, color=color, marker="o", markersize=4, alpha=0.8)
    for axes, label in ((absolute, "best win rate (90 % quantile)"), (relative, "relative to online at this size")):
        axes.set_xlabel("parameters of the policy")
        axes.set_ylabel(label)
    absolute.legend(frameon=False, fontsize=10)
    save_figure(figure, out)

    rows, effects, (small, middle, large) = [], [], SIZES
    for by in dict.fromkeys(by for by, *_ in values):
        for size in SIZES:
            rows.append([size, by.removeprefix(", by the ") or "golden"])
            rows[-1] += [spread(list(values[by, size, method].values())) for method in METHODS]
            rows[-1].append(spread([some[0].kl[-1] for some in groups[size]["online"].values()]))
            gap = {s: values[by, size, "online"][s] - values[by, size, METHODS[2]][s] for s in seeds}
            effects.append(Effect("fig11", f"online ahead of offline on D_golden, {size} parameters{by}", gap, {}))
            more = {s: values[by, size, METHODS[1]][s] - values[by, size, METHODS[2]][s] for s in seeds}
            effects.append(Effect("fig11", f"shuffled stream ahead of D_golden, {size} parameters{by}", more, {}, 0))
        rise = {s: values[by, large, "online"][s] - values[by, small, "online"][s] for s in seeds}
        effects.append(Effect("fig14", f"online's best rises from the smallest to the largest policy{by}", rise, {}))
    for one, other in ((middle, small), (large, middle)):
        sides = [by_judges(groups[size]) for size in (one, other)]
        for (by, first), (_, second) in zip(*sides):
            ahead = {s: ahead_at_kl(first["online"][s], second["online"][s], every=True) for s in seeds}
            effects.append(effect("fig14", f"online with {one} parameters ahead of {other}, at equal KL{by}", ahead, sign=0))
    header = ["parameters", "90 % quantile by", *METHODS, "online's last KL, nats"]
    return Report(table_of(header, rows), effects)


WHAT_CAME_OUT = """
By golden the gap to D_golden is there at every size and does not close: in every seed it is larger at 115 thousand parameters
than at 28, and no smaller at 467. The shuffled stream is between the two, nearer to online but in one seed at the smallest
size, as in Figure 4. By the rule the smallest policy's lead is undecided, and in one seed it is none: it goes no farther than
3 nats, and yet finds what golden likes and the rule does not.

Online's best by golden rises with the size, as in the paper, where larger policies go farther in as many steps: at equal KL,
each at the best of its crossings, golden sees no difference between 28 and 115 thousand, and the largest 0.05 behind. The
rule has 115 thousand ahead of 28 at equal KL in every seed, by 0.22 on average, undecided.
"""
