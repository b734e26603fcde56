"""Figure 1 with the paper's whole grid: offline may choose among nine settings of learning rate and beta, not five.

The sweep of Figure 1 has the row and the column through the default. Here its four corners are added: learning rates of 0.3
and 3 times the default at betas 0.5 and 1, each with as many steps as online and with five times as many. Online stays one
setting. A check on the primary claims, which keep the sweep that was fixed beforehand.
"""

from paper.compare import Groups, Report, compared, draw, group_table, judged, judges_of
from paper.fig1 import jobs as jobs_of_fig1
from paper.fig1 import offline_run, online_run, sweep, whole, with_beginnings
from paper.jobs import Job, World

SEEDS = (1, 2, 3, 4, 5)
CORNERS = ((0.3, 0.5), (0.3, 1), (3, 0.5), (3, 1))  # (learning rate in defaults, beta)


def corners(world: World, seed: int) -> list[Job]:
    return [offline_run(world.start(seed), rate, beta) for rate, beta in CORNERS]


def jobs(world: World, seed: int) -> list[Job]:
    return [*jobs_of_fig1(world, seed), *with_beginnings(corners(world, seed))]


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    groups: Groups = {"online": {}, "offline, nine settings": {}, "offline, the corners alone": {}}
    for seed in seeds:
        added = [whole(job) for job in corners(world, seed)]
        groups["online"][seed] = [whole(online_run(world.start(seed)))]
        groups["offline, nine settings"][seed] = [*map(whole, sweep(world, seed)), *added]
        groups["offline, the corners alone"][seed] = added
    draw(f"Nine settings, {len(seeds)} seeds", {name: groups[name] for name in list(groups)[:2]}, out)
    effects = []
    for first, judge in enumerate(judges_of(groups)):
        told = f"online ahead of offline, nine settings, by {judge}"
        effects += compared("grid", judged(groups, first), "online", "offline, nine settings", told)
    return Report(group_table(groups), effects)


WHAT_CAME_OUT = """
The corners hardly learn. At a third of the rate the target of a large beta is soon reached, and they stay within 0.3 nats of
SFT; at three times the rate they scatter to several nats and win about as little as SFT. So the peaks are those of Figure 1.
The lead at equal KL is larger than there only because the pool now reaches levels that it did not reach, with next to nothing
won: where the mean is over levels that both sides reach, more settings need not help a side.
"""
