"""Loss (H4): is it the contrastive loss?

Tang et al. 2024, Figure 9: the same with Best-of-2, which is fine-tuning on the better response of
each pair. They find online ahead of offline on two of three tasks, and offline on the online run's
shuffled pairs level with online. All at 400 steps and the default rate. Three seeds.
"""

from pathlib import Path

from paper import swept
from paper.runs import SHORT, Job
from paper.statistics import Row, arms_report, flat, gather


def arms(seed: int) -> dict[str, list[Job]]:
    online, offline = (swept.whole("bo2", side, 1, None, seed) for side in ("online", "offline"))
    words = "bo2_offline__online_pairs", "bo2_offline", seed
    words += "--dataset", online.folder / "online_pairs"
    shuffled = swept.short("loss", *words, needs=(online,))
    return {"online": [online], "its pairs, shuffled": [shuffled], "offline, D_golden": [offline]}


def jobs() -> list[Job]:
    return flat(arms, swept.FEWER_SEEDS)


def report(pictures: Path) -> tuple[str, list[Row]]:
    groups = gather(arms, swept.FEWER_SEEDS, SHORT)
    return arms_report("loss", groups, "online", pictures, "Best-of-2: no contrast in the loss")
