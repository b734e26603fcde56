"""Beyond the paper: beta and the gap, for each loss. Online and offline at the same three betas.

For IPO, DPO and SLiC: the script's default beta, a fifth and five times of it, at the default learning rate; offline with five
times the steps too. The question of the house, not of the paper, which ran IPO and Best-of-2: does the gap depend on the loss?
"""

import importlib

from paper.compare import Groups, Report, compared, draw, group_table, judged, judges_of
from paper.fig1 import offline_run, whole, with_beginnings
from paper.frontier import NAMES
from paper.jobs import Job, World, run_of

SEEDS = (1, 2, 3)
LOSSES, FACTORS = ("ipo", "dpo", "slic"), (0.2, 1, 5)


def runs(world: World, seed: int, loss: str) -> tuple[list[Job], list[Job]]:
    """(online runs, offline runs) at each beta."""
    start, default = world.start(seed), importlib.import_module(f"{loss}_online").Args.beta
    betas = [float(f"{factor * default:.3g}") for factor in FACTORS]
    online = [run_of(start, f"{loss}_online", f"{loss}_online__beta={beta:g}", beta=beta) for beta in betas]
    return online, [offline_run(start, 1, beta, loss) for beta in betas]


def jobs(world: World, seed: int) -> list[Job]:
    return with_beginnings([job for loss in LOSSES for side in runs(world, seed, loss) for job in side])


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    text, effects = [], []
    for loss in LOSSES:
        sides = {s: runs(world, s, loss) for s in seeds}
        groups: Groups = {"online": {}, "offline": {}}
        for s, (online, offline) in sides.items():
            groups["online"][s], groups["offline"][s] = [whole(j) for j in online], [whole(j) for j in offline]
        draw(f"{NAMES[loss]}, three betas, {len(seeds)} seeds", groups, f"{out}_{loss}")
        text.append(f"{NAMES[loss]}:\n\n{group_table(groups)}")
        for first, judge in enumerate(judges_of(groups)):
            told = f"{NAMES[loss]}: online ahead of offline, the same betas, by {judge}"
            effects += compared("betas", judged(groups, first), "online", "offline", told, sign=0)
    return Report("\n\n".join(text), effects)
