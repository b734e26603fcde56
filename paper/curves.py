"""What a healthy run looks like: every loss, offline and online, at the scripts' defaults.

Over the steps: the loss (mean of 20 steps), KL, the win rate by golden and by the proxy, the accuracy on D_golden, and the
mean log-ratios of its chosen and rejected responses. Curves are every seed's.
"""

from paper.compare import Report, load_curve, spread, table_of
from paper.fig1 import online_run
from paper.frontier import COLORS, NAMES, new_figure, save_figure
from paper.jobs import LOSS_WINDOW, Job, World, read, run_of

SEEDS = (1, 2, 3)
PANELS = {"kl": "KL to SFT, nats", "win_rate": "win rate", "accuracy": "accuracy on D_golden"}
LAST = ("kl", "win_rate", "proxy_win_rate", "accuracy", "chosen_logratio", "rejected_logratio", "response_length")


def offline_default(start: Job, loss: str = "ipo") -> Job:
    return run_of(start, f"{loss}_offline", f"{loss}_offline", save_policies=True)


def pair(world: World, seed: int, loss: str) -> dict[str, Job]:
    start = world.start(seed)
    return {"offline": offline_default(start, loss), "online": online_run(start, loss)}


def jobs(world: World, seed: int) -> list[Job]:
    return [job for loss in NAMES for job in pair(world, seed, loss).values()]


def draw(loss: str, made: dict[int, dict[str, Job]], out: str) -> None:
    """Five panels over the steps."""
    figure, (panels,) = new_figure(1, 5, figsize=(25, 4.4))
    for first, pair_of_seed in zip([True] + [False] * len(made), made.values()):
        for side, job in pair_of_seed.items():
            style = {"color": COLORS[side], "linewidth": 1.3, "alpha": 0.85}
            losses, evals = read(job)["losses"], read(job)["evals"]
            steps = [row["step"] for row in evals]
            label = side if first else None
            panels[0].plot([LOSS_WINDOW * (i + 1) for i in range(len(losses))], losses, label=label, **style)
            for axes, key in zip(panels[1:], PANELS):
                axes.plot(steps, [row[key] for row in evals], **style)
            told = "by the proxy" if first else None
            panels[2].plot(steps, [row["proxy_win_rate"] for row in evals], linestyle=":", label=told, **style)
            for key, line in (("chosen_logratio", "-"), ("rejected_logratio", "--")):
                told = f"{key.split('_')[0]}, {side}" if first else None
                panels[4].plot(steps, [row[key] for row in evals], linestyle=line, label=told, **style)
    for axes, label in zip(panels, ("loss", *PANELS.values(), "log-ratio on D_golden, nats")):
        axes.set_xlabel("gradient steps")
        axes.set_ylabel(label)
    for axes in (panels[0], panels[2], panels[4]):
        axes.legend(frameon=False, fontsize=10)
    panels[0].set_title(NAMES[loss], loc="left")
    save_figure(figure, out)


def report(world: World, seeds: tuple[int, ...], out: str) -> Report:
    rows = []
    for loss in NAMES:
        made = {seed: pair(world, seed, loss) for seed in seeds}
        draw(loss, made, f"{out}_{loss}")
        for side in COLORS.keys() & {"offline", "online"}:
            last = [load_curve(made[seed][side]).evals[-1] for seed in seeds]
            rows.append([f"{NAMES[loss]}, {side}", *(spread([row[key] for row in last]) for key in LAST)])
    names = ("KL, nats", "win rate", "by the proxy", "accuracy", "chosen log-ratio", "rejected log-ratio", "length")
    return Report(table_of(["after the last step", *names], sorted(rows)), [])


WHAT_CAME_OUT = """
At the defaults all three contrastive losses win more online than offline after the last step, IPO by the most; each stands at
its own KL, so this is no comparison at equal KL. Online Best-of-2 is the run that is not healthy: see [its page](bo2.md).
"""
