"""The five hypotheses of Tang et al. 2024 on why online is ahead, each a question with its arms.

IPO at its defaults and 400 steps, where nothing else is said, on the first three seeds of the
frontier, whose runs they read and share.
"""

from statistics import correlation, mean

from paper import swept
from paper.runs import SHORT, Job, stage
from paper.statistics import BUDGETS, Arms, Report

METHODS = ONLINE, SHUFFLED, OFFLINE = "online", "its pairs, shuffled", "offline, D_golden"
SETTINGS = "offline, all settings"


def ipo(side: str, seed: int, rate: float = 1) -> Job:
    return swept.whole("ipo", side, rate, 0.1, seed)


def coverage(seed: int) -> Arms:
    """H1: is online ahead because its data cover more, or because they are fresh?

    Figures 4 and 13: the online run's own pairs, shuffled, as an offline data set. The paper finds
    that this improves little on plain offline, and that a little shuffling costs nothing. In their
    order the pairs must give the online run again, to the bit.
    """
    online = ipo("online", seed)

    def shuffled(shuffle: str | int, rate: float = 1) -> Job:
        name = f"ipo_offline__online_pairs__shuffle={shuffle}__rate={rate:g}"
        words = "--dataset", online.folder / "online_pairs", "--shuffle", shuffle
        return swept.short("coverage", name, seed, *words, rate=rate, needs=(online,))

    made = {ONLINE: [online], "its pairs, in order": [shuffled("none")]}
    made |= {f"its pairs, windows of {n}": [shuffled(n)] for n in (4, 50)}
    made[SHUFFLED] = [shuffled("all", rate) for rate in swept.RATES]
    made[OFFLINE] = [ipo("offline", seed, rate) for rate in swept.RATES]
    for n in (10, 100):
        fewer = swept.short("coverage", f"ipo_online__sync={n}", seed, "--sync-every", n)
        made[f"sampling every {n} steps"] = [fewer]
    return made | {"half online, half D_golden": [swept.short("coverage", "ipo_hybrid", seed)]}


def coverage_report(made: Report) -> None:
    shown = [arm for arm in made.groups if arm in METHODS or "window" in arm]
    made.curves(shown, "IPO: offline on the online run's own pairs")
    made.compare((arm, ONLINE) for arm in made.groups if arm != ONLINE)
    made.ahead("4", "online is ahead of its own pairs, shuffled", 1, ONLINE, SHUFFLED)
    made.ahead("4", "its pairs, shuffled, are no better than D_golden", 0, SHUFFLED, OFFLINE)
    made.ahead("13", "little shuffling costs nothing", 0, "its pairs, windows of 4", ONLINE)


def at_one_rate(seed: int) -> Arms:
    """What H3 and H5 read of H1."""
    return {arm: jobs[-1:] for arm, jobs in coverage(seed).items() if arm in METHODS}


def quality(seed: int) -> Arms:
    """H2: is offline behind because its data are poor?

    Figures 5 and 12: pairs of better policies, labelled by the golden preference model, as offline
    data. The paper finds that pairs of the final online policy help little, and that one side from
    SFT, near to where training starts, matters more than quality or contrast. early: the online
    policy after 80 steps; final: after 400.
    """
    setup, online = swept.reviews(seed), ipo("online", seed)
    policies = {"sft": setup.folder / "sft", "early": online.folder / swept.EARLY}
    policies["final"] = online.folder / swept.FINAL

    def on_pairs(first: str, second: str, end: str = "", steps: int = SHORT) -> list[Job]:
        words = ["pairs", "--policies", policies[first], policies[second], "--seed", seed]
        words += ["--golden", setup.folder / "golden", "--dataset", setup.folder / "d_golden"]
        words += ["--count", 32 * SHORT]
        name = f"{seed}__pairs__{first}-{second}"
        data = stage(name, *words, needs=(setup, online), seconds=80)
        words = f"ipo_offline__{first}-{second}{end}", seed, "--dataset", data.folder
        return [swept.short("quality", *words, needs=(data,), steps=steps)]

    made = {ONLINE: [online], "D_golden": [ipo("offline", seed)]}
    for sides in (("sft", "sft"), ("final", "final"), ("sft", "early"), ("early", "final")):
        made[" against ".join(sides)] = on_pairs(*sides)
    longer = on_pairs("final", "final", "__longer", 4 * SHORT)
    return made | {"final against final, 4 times the steps": longer}


def quality_report(made: Report) -> None:
    shown = [arm for arm in made.groups if "times" not in arm]
    made.curves(shown, "Offline IPO: which policies' pairs?")
    made.compare((arm, "D_golden") for arm in made.groups if arm != "D_golden")
    final, early = "final against final", "early against final"
    made.ahead("5", "the final policy's pairs are no better than D_golden", 0, final, "D_golden")
    made.ahead(
        "12", "sft against early is ahead of early against final", 1, "sft against early", early
    )


def classification(seed: int) -> Arms:
    """H3: does who classifies better write better?

    Figures 6 to 8. The paper finds: the proxy classifies what online samples better than any
    policy, and less well as the policy drifts (6). Within offline runs accuracy on D_golden says
    little about the win rate (7). Offline classifies D_golden better than online, which wins more;
    the log-ratio of chosen responses falls, most for offline (8). All from runs that other
    questions make; Figure 7 takes offline's evaluations behind the first 80 steps.
    """
    setup, online, offline = swept.reviews(seed), ipo("online", seed), ipo("offline", seed)
    words = ["classify", "--pairs", online.folder / "online_pairs", "--setup", setup.folder]
    words += ["--policies", online.folder / swept.FINAL, offline.folder / swept.FINAL]
    told = {"needs": (setup, online, offline), "seconds": 15, "question": "classification"}
    classified = stage(f"{seed}__classified", *words, **told)
    settings = swept.arms(seed)["IPO, offline"]
    return at_one_rate(seed) | {SETTINGS: settings, "classified": [classified]}


def classification_report(made: Report) -> None:
    found = {seed: result["accuracy"] for seed, (result,) in made.groups["classified"].items()}
    curves = {
        who: {(i + 1) / 10: [right[who][i] for right in found.values()] for i in range(10)}
        for who in next(iter(found.values()), ())
    }
    axis = {"xlabel": "share of the online run", "ylabel": "agreement with golden"}
    axis |= {"ylim": (0.3, 1)}
    title = "Who picks the better response of the pairs that online samples?"
    made.draw({"": curves}, "classification", title, (0.5, "chance"), **axis)

    columns = {"accuracy": "accuracy on D_golden", "win_rate": "win rate, golden"}
    columns |= {f"{one}_logratio": f"log-ratio of {one}, nats" for one in ("chosen", "rejected")}
    last = {
        arm: {seed: results[0]["evals"][-1] for seed, results in made.groups[arm].items()}
        for arm in METHODS
    }
    lines = []
    for arm, rows in last.items():
        values = {text: {s: row[name] for s, row in rows.items()} for name, text in columns.items()}
        lines.append([arm, len(rows), *(made.cell(arm, *one) for one in values.items())])
    made.table([f"after {SHORT} steps", "seeds", *columns.values()], lines)
    proxy = {seed: right["proxy"] for seed, right in found.items()}
    decay = {seed: mean(right[-2:]) - mean(right[:2]) for seed, right in proxy.items()}
    made.claim("6", "the proxy's accuracy falls: last minus first fifth", -1, decay)
    says = [("accuracy", 1, "accuracy on D_golden: offline less online is positive")]
    says += [("chosen_logratio", -1, "log-ratio of chosen, nats: offline less online is negative")]
    for name, sign, text in says:
        online = {seed: row[name] for seed, row in last[ONLINE].items()}
        apart = {s: row[name] - online[s] for s, row in last[OFFLINE].items() if s in online}
        made.claim("8", text, sign, apart)
    seven = {}
    for seed, results in made.groups[SETTINGS].items():
        rows = [row for result in results for row in result["evals"] if row["step"] >= 80]
        columns = ([row[name] for row in rows] for name in ("accuracy", "win_rate"))
        seven[seed] = correlation(*columns)
    made.claim("7", "correlation of accuracy and win rate, offline runs, is near 0", 0, seven)


def loss(seed: int) -> Arms:
    """H4: is it the contrastive loss?

    Figure 9: the same with Best-of-2, which is fine-tuning on the better response of each pair. The
    paper finds online ahead of offline on two of three tasks, and offline on the online run's
    shuffled pairs level with online.
    """
    online, offline = (swept.whole("bo2", side, 1, None, seed) for side in ("online", "offline"))
    words = "bo2_offline__online_pairs", seed, "--dataset", online.folder / "online_pairs"
    shuffled = swept.short("loss", *words, needs=(online,))
    return dict(zip(METHODS, ([online], [shuffled], [offline])))


def loss_report(made: Report) -> None:
    made.curves(made.groups, "Best-of-2: no contrast in the loss")
    made.compare((arm, ONLINE) for arm in made.groups if arm != ONLINE)
    made.ahead("9", "Best-of-2: online is ahead", 1, ONLINE, OFFLINE)
    made.ahead("9", "Best-of-2: shuffled pairs are level with online", 0, SHUFFLED, ONLINE)


# parameters in thousands: (the untrained model of a setup, what a step costs)
SIZES = {28: ("untrained_small", 0.7), 115: ("untrained", 1), 467: ("untrained_golden", 2.6)}


def scale(seed: int) -> Arms:
    """H5: does the gap close with a larger policy?

    Figures 10, 11 and 14. The paper finds that it does not: the gap persists at all sizes, online's
    peak rises with the size, and the online run's shuffled pairs close most of the gap.
    Three sizes, each four times the one before, one SFT each; the preference models and the
    baseline policy stay. A budget of 12 nats stands for the peak.
    """
    made = {}
    for size in SIZES:
        methods = at_one_rate(seed) if size == 115 else of_size(size, seed)
        made |= {f"{size} thousand, {method}": jobs for method, jobs in methods.items()}
    return made


def of_size(size: int, seed: int) -> Arms:
    setup, (untrained, cost) = swept.reviews(seed), SIZES[size]
    words = ["sft", "--model", setup.folder / untrained, "--dataset", setup.folder / "d_initial"]
    name = f"{seed}__sft__{size}k"
    sft = stage(name, *words, "--seed", seed, needs=(setup,), seconds=45 * cost)

    def made(name: str, *words, needs=(), keeps=()) -> Job:
        words = "scale", f"{name}__{size}k", seed, "--model", sft.folder, *words
        return swept.short(*words, needs=(sft, *needs), keeps=keeps, cost=cost)

    online = made("ipo_online__online", "--save-pairs", keeps=("online_pairs",))
    words = "--dataset", online.folder / "online_pairs"
    shuffled = made("ipo_offline__online_pairs", *words, needs=(online,))
    return dict(zip(METHODS, ([online], [shuffled], [made("ipo_offline__d_golden")])))


def scale_report(made: Report) -> None:
    shown = [arm for arm in made.groups if "shuffled" not in arm]
    made.curves(shown, "IPO: three sizes of the policy")
    sizes = [[f"{size} thousand, {method}" for method in METHODS] for size in SIZES]
    made.compare([(arm, online) for online, *others in sizes for arm in others], BUDGETS[-1])
    online, _, offline = sizes[-1]
    made.ahead(
        "10", "the largest policy: online is ahead, 12 nats", 1, online, offline, BUDGETS[-1]
    )
