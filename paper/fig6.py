"""Figure 6: who is the better judge? The proxy and two policies as classifiers of what the online policy samples.

Along one online run, at ten moments, golden says of 64 of the pairs that were trained on which is better. The proxy's labels,
the final online policy and the final offline policy (both at the defaults) are compared with that.

The paper: the proxy is clearly above both policies, and its accuracy decays as the policy drifts away from what it was trained
on.
"""

from paper.compare import Effect, Report, spread, table_of
from paper.curves import offline_default
from paper.fig1 import online_run
from paper.frontier import COLORS, new_figure, save_figure
from paper.jobs import Job, Part, World, read

SEEDS = (1, 2, 3)
NAMES = ("the proxy's labels", "online policy", "offline policy")


def classified(world: World, seed: int) -> Job:
    start = world.start(seed)
    online = online_run(start)
    policies = Part(online, "policy"), Part(offline_default(start), "policy")
    return Job(world, seed, "classified", "paper.classify", {"run": Part(online), "policies": policies})


def jobs(world: World, seed: int) -> list[Job]:
    return [classified(world, seed)]


def accuracies(job: Job) -> dict[str, list[float]]:
    """{who: accuracy at each moment}."""
    return dict(zip(NAMES, read(job)["result"]["accuracy"].values()))


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    curves = {s: accuracies(classified(world, s)) for s in seeds}
    figure, ((axes,),) = new_figure(figsize=(7.4, 4.6))
    for name, color in zip(NAMES, ("black", COLORS["online"], COLORS["offline"])):
        for i, seed in enumerate(seeds):
            values, label = curves[seed][name], name if i == 0 else None
            moments = [(k + 1) / len(values) for k in range(len(values))]
            axes.plot(moments, values, color=color, marker="o", markersize=3, linewidth=1.4, alpha=0.8, label=label)
    axes.axhline(0.5, color="grey", linestyle="--", linewidth=1, zorder=0)
    axes.set_xlabel("share of the online run")
    axes.set_ylabel("accuracy by golden's verdict")
    axes.legend(frameon=False, fontsize=10)
    save_figure(figure, out)

    def mean(values):
        return sum(values) / len(values)

    rows = [
        [n, *(spread([mean(curves[s][n][part]) for s in seeds]) for part in (slice(2), slice(4, 6), slice(-2, None)))]
        for n in NAMES
    ]
    proxy = {s: mean(curves[s][NAMES[0]]) for s in seeds}
    effects = [
        Effect("fig6", f"proxy more accurate than the {name}", {s: proxy[s] - mean(curves[s][name]) for s in seeds}, {})
        for name in NAMES[1:]
    ]
    decay = {s: mean(curves[s][NAMES[0]][:2]) - mean(curves[s][NAMES[0]][-2:]) for s in seeds}
    effects.append(Effect("fig6", "proxy's accuracy decays, first fifth less last fifth of the run", decay, {}))
    return Report(table_of(["accuracy", "first fifth", "middle", "last fifth"], rows), effects)


WHAT_CAME_OUT = """
The proxy is the better judge of what online samples, as in the paper. Its accuracy falls along the run in all three seeds, in
one of them by next to nothing, which is undecided. Policies classify much better than the paper's here, perhaps because the
taste is simple.
"""
