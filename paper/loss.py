"""Loss (H4): is it the contrastive loss?

Tang et al. 2024, Figure 9: the same with Best-of-2, which is fine-tuning on the better response of
each pair. They find online ahead of offline on two of three tasks, and offline on the online run's
shuffled pairs level with online. All at 400 steps and the default rate. Three seeds.
"""

from paper import coverage, swept
from paper.statistics import Arms, Report

SEEDS = swept.FEWER_SEEDS


def arms(seed: int) -> Arms:
    online, offline = (swept.whole("bo2", side, 1, None, seed) for side in ("online", "offline"))
    words = "bo2_offline__online_pairs", "bo2_offline", seed
    words += "--dataset", online.folder / "online_pairs"
    shuffled = swept.short("loss", *words, needs=(online,))
    return dict(zip(coverage.METHODS, ([online], [shuffled], [offline])))


def report(made: Report) -> None:
    made.curves(made.groups, "loss", "Best-of-2: no contrast in the loss")
    made.arms(made.groups, "online")
