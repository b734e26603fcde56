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


WHAT_CAME_OUT = """
Nothing was changed after these runs were seen; what `longer` and `betas` share with them had been seen before.

With a sweep to choose from, offline DPO and SLiC nearly catch up, which offline IPO does not. DPO: at equal KL the lead over one
offline run at the same setting, 0.06 in the experiment on longer runs, is 0.03 over the pool for online with four times the
steps, decided by golden and not by the rule, and none for online with its own. With KL as a budget the two are level. What the
pool adds is its run at a third of the rate: slow runs win more at a given KL, with five times the steps they come to 2 or 3 nats,
and online was not run so slowly here (for IPO it was, in the experiment on learning rates). Over offline runs of online's own
length online DPO is ahead at equal KL, by 0.07 by golden and 0.06 by the rule, both decided. SLiC: at equal KL the seeds
disagree, because its online runs pass the first nats within a few steps; with KL as a budget offline is ahead by 0.07 by
golden and by 0.08 by the rule, decided.

The peak is where the two judges part. Golden's highest win rates are offline's, 0.88 at about 21 nats, where the rule gives 0.2 to
0.3: neither loss ever pushes back, and at three times the rate or a small beta policies leave the texts that golden knows.
Judged and chosen by the rule, nobody is decidedly ahead, with the peaks at 5 to 8 nats.

So the two primary claims are about IPO, whose offline runs stop at a target that they hardly reach, and are not borne out by the
other losses here. The paper swept IPO alone.
"""
