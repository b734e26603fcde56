"""Beyond the paper: Figure 1 with DPO and with SLiC. One online setting, and a sweep of the offline script, loss by loss.

The sweep is Figure 1's in multiples of each script's default beta: learning rates of 0.3, 1 and 3 times the default at the
default beta, and a fifth and five times of it at the default rate, all with five times online's steps. Online has the
script's defaults, with its own number of steps and, as neither loss ever pushes back, with four times as many.

The paper swept IPO alone. Its claims, asked of the other losses: online is ahead at equal KL, and at the peak.
"""

from paper.betas import FACTORS, betas_of
from paper.compare import NATS, Groups, Report, ahead_within, by_judges, compared, draw, effect, group_table
from paper.fig1 import offline_run, online_run, whole, with_beginnings
from paper.frontier import NAMES
from paper.jobs import Job, World
from paper.longer import TIMES, long_run

SEEDS = (1, 2, 3, 4, 5)
LOSSES = ("dpo", "slic")


def sweep(world: World, seed: int, loss: str) -> list[Job]:
    """The default setting first."""
    start, betas = world.start(seed), dict(zip(FACTORS, betas_of(loss)))
    settings = (1, 1), (0.3, 1), (3, 1), (1, 0.2), (1, 5)  # learning rate and beta, each in defaults
    return [offline_run(start, rate, betas[factor], loss) for rate, factor in settings]


def online(world: World, seed: int, loss: str) -> list[Job]:
    return [online_run(world.start(seed), loss), long_run(world, seed, f"{loss}_online")]


def jobs(world: World, seed: int) -> list[Job]:
    return with_beginnings([job for loss in LOSSES for side in (online, sweep) for job in side(world, seed, loss)])


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    text, effects = [], []
    for loss in LOSSES:
        names = "online", f"online, {TIMES}x steps", "offline, swept", "offline, swept, 1x steps"
        groups: Groups = {name: {} for name in names}
        for seed in seeds:
            short, long = map(whole, online(world, seed, loss))
            pool = [whole(job) for job in sweep(world, seed, loss)]
            for name, curves in zip(names, ([short], [long], pool, [curve.until(world.steps) for curve in pool])):
                groups[name][seed] = curves
        first, longer, swept, equal = names
        title = f"{NAMES[loss]}, {len(seeds)} seeds"
        draw(title, {name: groups[name] for name in (longer, swept)}, f"{out}_{loss}")
        text.append(f"{NAMES[loss]}:\n\n{group_table(groups)}")
        for by, same in by_judges(groups):
            for one, other in ((first, swept), (first, equal), (longer, swept)):
                effects += compared("losses", same, one, other, f"{NAMES[loss]}: {one}, ahead of {other}{by}")
            budget = {seed: ahead_within(same[longer][seed], same[swept][seed]) for seed in seeds}
            told = f"{NAMES[loss]}: {longer}, ahead of {swept}, best with at most {NATS[0]} to {NATS[-1]} nats, on average{by}"
            effects.append(effect("losses", told, budget))
    return Report("\n\n".join(text), effects)
