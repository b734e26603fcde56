"""Coverage (H1): is online ahead because its data cover more, or because they are fresh?

Tang et al. 2024, Figures 4 and 13: the online run's own pairs, shuffled, as an offline data set.
They find that this improves little on plain offline, and that a little shuffling costs nothing.
Online IPO at its defaults, and of the same 400 steps: offline on its pairs, shuffled within windows
of 4 and of 50 batches and whole, at two rates; online that samples for 10 and for 100 steps at
once; a hybrid, half of each batch from D_golden. In their order the pairs give the online run again,
to the bit; one seed checks it. Three seeds.
"""

from pathlib import Path

from paper import swept
from paper.runs import SHORT, Job
from paper.statistics import Row, arms_report, flat, gather, load


def on_pairs(online: Job, seed: int, shuffle: str | int, rate: float = 1) -> Job:
    """Offline on the pairs of an online run."""
    name = f"ipo_offline__online_pairs__shuffle={shuffle}__rate={rate:g}"
    words = "--dataset", online.folder / "online_pairs", "--shuffle", shuffle
    return swept.short("coverage", name, "ipo_offline", seed, *words, rate=rate, needs=(online,))


def arms(seed: int) -> dict[str, list[Job]]:
    online = swept.whole("ipo", "online", 1, 0.1, seed)
    made = {"online": [online]}
    made["its pairs, windows of 4"] = [on_pairs(online, seed, 4)]
    made["its pairs, windows of 50"] = [on_pairs(online, seed, 50)]
    made["its pairs, shuffled"] = [on_pairs(online, seed, "all", rate) for rate in swept.RATES]
    offline = [swept.whole("ipo", "offline", rate, 0.1, seed) for rate in swept.RATES]
    made["offline, D_golden"] = offline
    for every in (10, 100):
        words = f"ipo_online__sync={every}", "ipo_online", seed, "--sync-every", every
        made[f"sampling every {every} steps"] = [swept.short("coverage", *words)]
    made["half online, half D_golden"] = [
        swept.short("coverage", "ipo_hybrid", "ipo_hybrid", seed, "--offline-share", 0.5)
    ]
    return made


def in_order() -> tuple[Job, Job]:
    """(an online run, offline on its pairs in their order)."""
    seed = swept.FEWER_SEEDS[0]
    online = swept.whole("ipo", "online", 1, 0.1, seed)
    return online, on_pairs(online, seed, "none")


def jobs() -> list[Job]:
    return [*flat(arms, swept.FEWER_SEEDS), in_order()[1]]


def report(pictures: Path) -> tuple[str, list[Row]]:
    groups = gather(arms, swept.FEWER_SEEDS, SHORT)
    sampling = [arm for arm in groups if "sampling" in arm]
    title = "IPO: the online run's own pairs, offline"
    text, rows = arms_report("coverage", groups, "online", pictures, title, sampling)
    pairs_of = [load(job, SHORT) for job in in_order()]
    told = "not made yet"
    if None not in pairs_of:
        online, again = ([(e["kl"], e["golden"]) for e in r["evals"]] for r in pairs_of)
        told = "the online run again" if online == again else "not the online run again"
    return f"{text}\n\nOffline on the pairs in their order: {told}.", rows
