"""Coverage (H1): is online ahead because its data cover more, or because they are fresh?

Tang et al. 2024, Figures 4 and 13: the online run's own pairs, shuffled, as an offline data set.
They find that this improves little on plain offline, and that a little shuffling costs nothing.
Online IPO at its defaults, and of the same 400 steps: offline on its pairs, shuffled within windows
of 4 and of 50 batches and whole, at two rates; online that samples for 10 and for 100 steps at
once; a hybrid, half of each batch from D_golden. In their order the pairs must give the online run
again, to the bit. Three seeds.
"""

from paper import swept
from paper.runs import Job
from paper.statistics import Arms, Report

SEEDS = swept.FEWER_SEEDS
ORDERS = {"in order": "none", "windows of 4": 4, "windows of 50": 50}
METHODS = ONLINE, SHUFFLED, OFFLINE = "online", "its pairs, shuffled", "offline, D_golden"


def on_pairs(online: Job, seed: int, shuffle: str | int, rate: float = 1) -> Job:
    """Offline on the pairs of an online run."""
    name = f"ipo_offline__online_pairs__shuffle={shuffle}__rate={rate:g}"
    words = "--dataset", online.folder / "online_pairs", "--shuffle", shuffle
    return swept.short("coverage", name, "ipo_offline", seed, *words, rate=rate, needs=(online,))


def arms(seed: int) -> Arms:
    online = swept.whole("ipo", "online", 1, 0.1, seed)
    made = {"online": [online]}
    made |= {f"its pairs, {name}": [on_pairs(online, seed, n)] for name, n in ORDERS.items()}
    made[SHUFFLED] = [on_pairs(online, seed, "all", rate) for rate in swept.RATES]
    made[OFFLINE] = [swept.whole("ipo", "offline", rate, 0.1, seed) for rate in swept.RATES]
    for n in (10, 100):
        words = f"ipo_online__sync={n}", "ipo_online", seed, "--sync-every", n
        made[f"sampling every {n} steps"] = [swept.short("coverage", *words)]
    hybrid = swept.short("coverage", "ipo_hybrid", "ipo_hybrid", seed)  # half and half
    return made | {"half online, half D_golden": [hybrid]}


def at_one_rate(seed: int) -> Arms:
    """What other questions read: online, and offline on its shuffled pairs and on D_golden."""
    return {arm: jobs[-1:] for arm, jobs in arms(seed).items() if arm in METHODS}


def report(made: Report) -> None:
    shown = [arm for arm in made.groups if arm in METHODS or "window" in arm]
    made.curves(shown, "coverage", "IPO: offline on the online run's own pairs")
    made.arms(made.groups, "online")
