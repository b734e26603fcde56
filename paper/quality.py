"""Quality (H2): is offline behind because its data are poor?

Tang et al. 2024, Figures 5 and 12: pairs of better policies, labelled by the golden preference
model, as offline data. They find that pairs of the final online policy help little, and that one
side from SFT, near to where training starts, matters more than quality or contrast.
Offline IPO at its defaults on pairs of SFT, of the online policy after 80 steps (early) and after
400 (final); on the final policy's own pairs four times as long, too. Three seeds.
"""

from paper import swept
from paper.runs import SHORT, Job, run, stage
from paper.statistics import Arms, Report

SEEDS = swept.FEWER_SEEDS
SOURCES = ("sft", "sft"), ("final", "final"), ("sft", "early"), ("early", "final")


def pairs(seed: int, first: str, second: str) -> Job:
    setup, online = swept.reviews(seed), swept.whole("ipo", "online", 1, 0.1, seed)
    policies = {"sft": setup.folder / "sft", "early": online.folder / swept.EARLY}
    policies["final"] = online.folder / swept.FINAL
    words = ["pairs", "--policies", policies[first], policies[second], "--seed", seed]
    words += ["--golden", setup.folder / "golden", "--dataset", setup.folder / "d_golden"]
    words += ["--count", 32 * SHORT]
    name = f"{seed}__pairs__{first}-{second}"
    return stage(name, *words, needs=(setup, online), seconds=80)


def arms(seed: int) -> Arms:
    made = {"online": [swept.whole("ipo", "online", 1, 0.1, seed)]}
    made["D_golden"] = [swept.whole("ipo", "offline", 1, 0.1, seed)]
    for sides in SOURCES:
        data = pairs(seed, *sides)
        words = f"ipo_offline__{'-'.join(sides)}", "ipo_offline", seed, "--dataset", data.folder
        made[" against ".join(sides)] = [swept.short("quality", *words, needs=(data,))]
    data, setup = pairs(seed, "final", "final"), swept.reviews(seed)
    words = setup, seed, 4 * SHORT, *swept.flags(1, None), "--dataset", data.folder
    name = f"{seed}__ipo_offline__final-final__longer"
    longer = run("quality", name, "ipo_offline", *words, needs=(data,))
    return made | {"final against final, 4 times the steps": [longer]}


def report(made: Report) -> None:
    shown = [arm for arm in made.groups if "early against" not in arm]
    made.curves(shown, "quality", "Offline IPO: which policies' pairs?")
    made.arms(made.groups, "D_golden")
