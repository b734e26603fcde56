"""Beyond the paper: does online go on? Online and offline for four times online's steps, at the same learning rate and beta.

In Figure 1 offline may train longer than online, for all its runs of the sweep do; here online may too. Both sides have the
default learning rate and beta 0.1. The question of the house: who is ahead once both have had the time, and does golden's
verdict on far policies still agree with the rule's, where there is one? Offline's pool is also joined with its whole sweep.

The paper trains for 4,000 steps, and online is ahead at every KL and at the peak.
"""

from paper.compare import Groups, Report, compared, draw, group_table, judged, judges_of
from paper.fig1 import online_run, sweep, whole, with_beginnings
from paper.jobs import Job, World, run_of

SEEDS = (1, 2, 3)
TIMES = 4  # steps, as a multiple of an online run's


def long_pair(world: World, seed: int) -> list[Job]:
    """The online run and the offline run, evaluated at the same steps."""
    told = {"steps": TIMES, "eval_every": world.steps // 5}
    return [run_of(world.start(seed), f"ipo_{side}", f"ipo_{side}__{TIMES}x", **told) for side in ("online", "offline")]


def jobs(world: World, seed: int) -> list[Job]:
    return with_beginnings([online_run(world.start(seed)), *long_pair(world, seed), *sweep(world, seed)])


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    groups: Groups = {"online": {}, f"online, {TIMES}x steps": {}, f"offline, {TIMES}x steps": {}, "offline, all": {}}
    for seed in seeds:
        online, offline = map(whole, long_pair(world, seed))
        runs = [whole(online_run(world.start(seed)))], [online], [offline], [offline, *map(whole, sweep(world, seed))]
        for name, curves in zip(groups, runs):
            groups[name][seed] = curves
    _, longer, offline, pool = groups
    draw(f"{TIMES} times the steps, {len(seeds)} seeds", {name: groups[name] for name in (longer, offline)}, out)
    effects = []
    for first, judge in enumerate(judges_of(groups)):
        by, same = f", by the {judge}" * bool(first), judged(groups, first)
        effects += compared("longer", same, longer, offline, f"{longer}, ahead of {offline}{by}")
        effects += compared("longer", same, longer, pool, f"{longer}, ahead of {pool}{by}")
        effects += compared("longer", same, longer, "online", f"{longer}, ahead of online{by}", sign=0)
    return Report(group_table(groups), effects)


WHAT_CAME_OUT = """
With four times the steps online's peak rises in every seed, by 0.067 by golden and by 0.029, undecided, by the rule: a part of
what golden sees late is golden's error. There is no collapse; after the last step the rule gives 0.50, 0.56 and 0.51. At equal
KL the longer run wins what the shorter one does. Offline at the same rate comes to 2 nats and stays there, and its peak is
where it was after a quarter of the steps (0.245 in the experiment on learning rates, 0.255 here). So at the peak online's
lead is larger than in Figure 1, also over offline's whole pool, by both judges. At equal KL the one offline run compares at 2
nats, in one seed at 1 nat too, and online's lead there is 0.05 to 0.09; over the whole pool it is Figure 1's again, undecided
with three seeds, because in the second only 2 nats compare.
"""

ON_STORIES = """
The number of steps is not why online is not ahead here. With four times as many both sides gain at the peak, online 0.055 in
each seed, and pass parity, and they stay level, at the peak and at equal KL, both undecided: a difference of more than 0.08 at
the peak, or of 0.06 at equal KL, either way, is not likely. Against all of offline's runs online is behind at equal KL,
decided here: that is offline's run at a third of the rate again, at 1 and 2 nats.
"""
