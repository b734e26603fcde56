"""Figure 1: online against offline. One online setting, and a sweep of the offline script, by the win rate at equal KL.

The offline side may choose its learning rate, beta and number of steps: of the paper's sweep the rows and columns through its
default, that is learning rates of 0.3, 1 and 3 times the default at beta 0.1, and betas 0.1, 0.5 and 1 at the default rate,
all with as many steps as online and with five times as many. The online side has the script's defaults. A run of 1x steps is
the first part of the one of 5x. Most runs go through their first nat in a few steps, so their beginning is run again with more
evaluations.

The paper: online is ahead at every KL, and has the higher peak. These are the two primary claims, fixed before the runs were
made: (i) at equal KL, the mean difference over those of 1, 2, 3 and 4 nats that both sides reach; (ii) at the peak, each side
at the best of all its evaluations; both by golden, over the whole sweep.
"""

from dataclasses import replace

import torch

from paper.compare import (
    NATS,
    Curve,
    Effect,
    Groups,
    Report,
    ahead_at_kl,
    ahead_at_peak,
    ahead_within,
    best_at_kl,
    by_judges,
    compared,
    draw,
    effect,
    group_table,
    join,
    on_held_out,
)
from paper.jobs import BEGINNING, Job, World, run_of

SEEDS = (1, 2, 3, 4, 5)


def online_run(start: Job, loss: str = "ipo", label: str = "", **options) -> Job:
    """The online run of a start at the script's defaults, which keeps its pairs and policies for other experiments."""
    return run_of(start, f"{loss}_online", f"{loss}_online{label}", save_stream=True, save_policies=True, **options)


def offline_run(start: Job, rate: float, beta: float | None, loss: str = "ipo", label: str = "", **options) -> Job:
    """A long offline run of the sweep; rate: as a multiple of the default learning rate."""
    options = {"learning_rate": float(f"{rate * start.world.learning_rate:.3g}")} | options
    name = f"{loss}_offline{label}__rate={rate:g}"
    if beta is not None:
        options, name = options | {"beta": beta}, f"{name}__beta={beta:g}"
    times, every = start.world.times, start.world.steps // 5
    return run_of(start, f"{loss}_offline", f"{name}__{times}x", times, eval_every=every, **options)


def beginning(job: Job) -> Job:
    """The run that shows a run's first steps more closely."""
    few = {"steps": BEGINNING, "eval_every": max(1, BEGINNING // 4)}
    return replace(job, label=f"{job.label}__beginning", options=job.options | few)


def with_beginnings(jobs: list[Job]) -> list[Job]:
    return [*jobs, *map(beginning, jobs)]


def whole(job: Job) -> Curve:
    """A run's curve, its beginning looked at more closely."""
    return join(beginning(job), job)


def sweep(world: World, seed: int) -> list[Job]:
    start = world.start(seed)
    return [offline_run(start, rate, beta) for rate, beta in world.sweep]


def jobs(world: World, seed: int) -> list[Job]:
    return with_beginnings([online_run(world.start(seed)), *sweep(world, seed)])


def groups_of(world: World, seeds: tuple[int, ...]) -> Groups:
    names = "online", "offline, swept", "offline, swept, 1x steps", "offline, swept, without the tripled rate"
    groups = {name: {} for name in names}
    for seed in seeds:
        curves = [whole(job) for job in (online_run(world.start(seed)), *sweep(world, seed))]
        slow = [curve for curve, (rate, _) in zip(curves[1:], world.sweep) if rate <= 1]
        for name, some in zip(names, (curves[:1], curves[1:], [curve.until(world.steps) for curve in curves[1:]], slow)):
            groups[name][seed] = some
    return groups


def early_lead(online: Curve, pool: list[Curve], step: int) -> torch.Tensor | None:
    """(J, P) how far online is ahead at its evaluation of a step, of the pool at the KL that it has there; online passes 1
    nat before its first evaluation and comes back, so that there is no comparison at 1 nat."""
    (i,) = (i for i, row in enumerate(online.evals) if row["step"] == step)
    best = best_at_kl(pool, online.kl[i])
    return None if best is None else online.wins[i] - best


def effects_of(groups: Groups, name: str) -> list[Effect]:
    """The two primary claims; the same against smaller pools, and by the exact rule; (i) level by level, with the best of all
    crossings instead of the first, with KL as a budget, and where online stands early; what offline's default setting gains
    by its further steps; both claims on held-out prompts."""
    effects, (online, swept, *smaller) = [], groups
    for by, same in by_judges(groups):
        effects += compared(name, same, online, swept, f"online ahead of {swept}{by}", primary=not by)
        for pool in smaller:
            effects += compared(name, same, online, pool, f"online ahead of {pool}{by}")
        first, second = same[online], same[swept]
        for nats in NATS:
            for crossing, every in (("", False), (", each at its best crossing", True)):
                alone = {seed: ahead_at_kl(first[seed], second[seed], (nats,), every) for seed in first}
                where = f"at {nats} nat{'s' * (nats > 1)} alone{crossing}"
                effects.append(effect(name, f"online ahead of offline, swept, {where}{by}", alone))
        best = {seed: ahead_at_kl(first[seed], second[seed], every=True) for seed in first}
        effects.append(effect(name, "online ahead of offline, swept, at equal KL, each at its best crossing" + by, best))
        for levels in (*((nats,) for nats in NATS), NATS):
            where = f"at most {levels[0]} nat{'s' * (levels[0] > 1)}" if len(levels) == 1 else "at most so many, on average"
            budget = {seed: ahead_within(first[seed], second[seed], levels) for seed in first}
            effects.append(effect(name, f"online ahead of offline, swept, best with {where}{by}", budget))
        early = {seed: early_lead(first[seed][0], second[seed], BEGINNING) for seed in first}
        effects.append(effect(name, f"online after {BEGINNING} steps ahead of offline, swept, at that KL" + by, early))
        more = {seed: ahead_at_peak(second[seed][:1], same[smaller[0]][seed][:1]) for seed in first}
        told = f"offline's first setting ahead of its 1x steps, at the peak{by}"
        effects.append(effect(name, told, more, sign=0))
    unseen = on_held_out(groups)
    for where, ahead in (("equal KL", ahead_at_kl), ("the peak", ahead_at_peak)):
        values = {seed: ahead(unseen[online][seed], unseen[swept][seed]) for seed in unseen[online]}
        values = {seed: value[0, 1].item() for seed, value in values.items() if value is not None}
        told = f"online ahead of offline, swept, on held-out prompts, at {where}"
        effects.append(Effect(name, told, values, {}, seeds=tuple(groups[online])))
    return effects


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    groups = groups_of(world, seeds)
    draw(f"Figure 1, {len(seeds)} seeds", {name: groups[name] for name in ("online", "offline, swept")}, out)
    return Report(group_table(groups), effects_of(groups, "fig1"))


WHAT_CAME_OUT = """
Both primary claims hold, on held-out prompts too. What to know beside them:

The mean over levels leans on one run. Offline at the default rate and below stays below 3 nats, so that at 3 and 4 nats the
pool is its run with three times the learning rate, which crosses them in its first 30 steps with little won, online in some
160 to 400. Without that run only 2 nats compare, and there online's lead of 0.03 is undecided: it is ahead in four seeds of
five; in the fifth it crosses them within its first steps, comes back, and crosses them again with three times the wins. The
primary claim takes first crossings. With each side at the best of its crossings, up or down, online is ahead at 2 nats in all
five seeds, by 0.06 to 0.12. The lead at the peak does not depend on the tripled rate.

Near SFT offline is ahead. At 1 nat the curves cannot be read: online passes it in its first ten steps. But it comes back, and
after 40 steps stands at 1.0 to 1.4 nats: there offline, which reaches them slowly and with a low learning rate, is ahead in
four seeds of five. With KL as a budget, each side at its best with at most so many nats, offline is ahead at 1 in every seed,
by 0.16, the two are level at 2, and online is ahead at 3 and 4, by 0.13 and 0.27; by the rule 0.18, level, 0.15 and 0.22. At
1 nat it was so in [an earlier world](earlier.md) too. In the paper online is ahead at every KL.

The peak is for the paper's betas. The earlier world's sweep had 0.02 and 0.05 too, and there golden's highest win rates were
offline's, far out, where the exact rule said the opposite; that was seen before this pool was fixed. With beta 0.02 added to
the pool in this world, golden puts offline ahead at the peak here too, by 0.13 in seeds 1 to 3, and the rule decides nothing
(the experiment on betas).
"""

ON_STORIES = """
The primary claims are about the embedded world; this is a reduced grid, read in the same way: rates of 0.3, 1 and 3 times
1e-4 at beta 0.1, up to twice the steps of online, which takes 200. SFT is the pretrained model. The data, the same for every
seed, are 11,780 pairs of its own samples, labelled by a lexicon of sentiment with noise; D_golden has golden's labels. Golden
agrees with 73.7, 72.3 and 73.4 % of the pairs held out, and the proxy with golden's labels on 85.8, 88.4 and 90.0 %.

Online is not ahead here, unlike in the paper and the embedded world. At equal KL offline leads in all three seeds, by 0.053,
undecided; at 2 nats by 0.09, decided, and with each side at its best crossings equal KL is decided too. At the peak offline
is level or ahead, undecided, at 7.7 nats against 2.9. On held-out prompts, with everything chosen on the training ones,
online is 0.05 behind at both, decided. At 3 nats it leads in the two seeds that compare, undecided, and at best crossings it
does not. At the same learning rate and as many steps the two sides are the same at 2 nats: what the pool has there beyond
online is its run at a third of the rate, with twice the steps. Whether online gains as much by going slowly is asked below,
in the experiment on learning rates.
"""
