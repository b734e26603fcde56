"""Beyond the paper: from online to offline in steps. Sampling ahead, and mixing offline with on-policy pairs.

With --sample-ahead R, R batches are sampled and then trained on: 1 is online, 400 is a data set sampled from SFT with the
proxy's labels. Compare Figure 13, and Lanchantin et al. 2025 (arXiv 2506.21495), who vary how often the sampler is brought up
to date. The hybrid script reads half of each batch from D_golden and samples the other half (the paper's future work).

The paper expects that some staleness is tolerated, and asks whether one can have online's generation and offline's
classification.
"""

from paper.compare import Effect, Report, by_judges, compared, draw, group_table
from paper.curves import offline_default
from paper.fig1 import online_run, whole, with_beginnings
from paper.jobs import Job, World, run_of

SEEDS = (1, 2, 3)
BATCHES = (4, 50, 400)


def sampled_ahead(world: World, seed: int, batches: int) -> Job:
    return run_of(world.start(seed), "ipo_online", f"ipo_online__ahead={batches}", sample_ahead=batches)


def hybrid(world: World, seed: int) -> Job:
    return run_of(world.start(seed), "ipo_hybrid", "ipo_hybrid")


def jobs(world: World, seed: int) -> list[Job]:
    start, some = world.start(seed), [sampled_ahead(world, seed, batches) for batches in BATCHES]
    return with_beginnings([online_run(start), offline_default(start), *some, hybrid(world, seed)])


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    kinds = {"online": lambda s: online_run(world.start(s))}
    kinds |= {f"{n} batches sampled ahead": lambda s, n=n: sampled_ahead(world, s, n) for n in BATCHES}
    kinds |= {"half read from D_golden (hybrid)": lambda s: hybrid(world, s)}
    kinds |= {"offline on D_golden": lambda s: offline_default(world.start(s))}
    groups = {name: {s: [whole(job(s))] for s in seeds} for name, job in kinds.items()}
    draw(f"From online to offline, {len(seeds)} seeds", groups, out)
    effects = []
    for name in list(kinds)[1:5]:
        for by, same in by_judges(groups):
            effects += compared("ahead", same, "online", name, f"online ahead of {name}{by}", sign=0)
    accuracy = {name: {s: curves[0].evals[-1]["accuracy"] for s, curves in group.items()} for name, group in groups.items()}
    mixed = accuracy["half read from D_golden (hybrid)"]
    for name in ("online", "offline on D_golden"):
        values = {s: mixed[s] - accuracy[name][s] for s in seeds}
        effects.append(Effect("ahead", f"hybrid classifies D_golden better than {name}", values, {}, 0))
    return Report(group_table(groups), effects)


WHAT_CAME_OUT = """
From online to offline the way is flat, then steep: 4 batches ahead cost nothing, 50 next to nothing, and all 400 end where
offline on D_golden does, although these pairs are labelled by the same proxy and sampled from the very policy that the run
starts from. So what matters is that the sampler is brought up to date some times, not at every step: the same as Figure 13
says from the other side, and as Lanchantin et al. report for larger models. The hybrid ends nearer to offline, a sixth of the
way to online. A likely reason, not tested: in the half that is read pairs stay as they are, and once h is at its target there
the loss holds it. It classifies no better than either.
"""
