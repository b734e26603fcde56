"""The frontier: KL(policy || sft) on a log axis against the win rate over the baseline policy, one curve a run (Figure 1)."""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import tyro
from rich.console import Console
from rich.table import Table

from common import fail, mean_stderr, wins
from prepare.reviews import all_prompts, ground_truth_score

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

COLORS = {"online": "#c2410c", "offline": "#1d4ed8", "hybrid": "#15803d"}
NAMES = {"ipo": "IPO", "dpo": "DPO", "slic": "SLiC", "bo2": "Best-of-2"}
MARKERS = {"ipo": "o", "dpo": "s", "slic": "^", "bo2": "D"}
OTHERS = [
    "#7e22ce",
    "#0f766e",
    "#be185d",
    "#854d0e",
    "#57606a",
    "#b91c1c",
    "#0e7490",
    "#3f6212",
]  # further runs of a kind


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of runs"""
    out: str = "frontier"
    """picture to write, without its ending: OUT.png and OUT.svg"""
    title: str = ""
    """line above the picture"""


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def json_rows(path: Path) -> list[dict]:
    """The lines of a file that may be growing: what follows the last line end is not whole yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def load_run(folder: str) -> tuple[dict, list[dict]]:
    """(args.json, the rows of evals.jsonl) of a run."""
    try:
        args = json.loads(Path(folder, "args.json").read_text())
        evals = json_rows(Path(folder, "evals.jsonl"))
    except (OSError, ValueError) as error:
        fail(f"{folder}: not the folder of a run ({error})")
    if not evals or evals[0]["win_rate"] is None:
        fail(f"{folder}: has no win rate to draw; a run needs a golden preference model (--golden)")
    if not any(row["kl"] > 0 for row in evals):
        fail(
            f"{folder}: has not moved from SFT yet; there is something to draw after its first steps"
        )
    return args, evals


def train_rows(folder: str, step: int) -> list[dict]:
    """The responses to training prompts, and the golden preference model's margins, behind an evaluation."""
    return [
        row
        for row in json_lines(Path(folder, "responses", f"{step}.jsonl"))
        if row["split"] == "train"
    ]


def true_wins(args: dict, rows: list[dict]) -> torch.Tensor | None:
    """(P,) wins by the reviews task's ground-truth score, None elsewhere: the verdict behind the verdicts.

    args: the run's; rows: of train_rows.
    """
    met = {r["prompt"] for r in rows}
    if args["baseline"] is None or not met <= set(all_prompts()):
        return None
    stored = json_lines(Path(args["baseline"], "responses.jsonl"))
    baseline = {
        r["prompt"]: ground_truth_score(r["prompt"], r["response"], r["finished"])
        for r in stored
        if r["prompt"] in met
    }
    if lacking := [r["prompt"] for r in rows if r["prompt"] not in baseline]:
        fail(
            f"{args['baseline']}: has no response to {lacking[0]!r}; it is not the baseline that this run met"
        )
    return wins(
        torch.tensor(
            [
                ground_truth_score(r["prompt"], r["response"], r["finished"])
                - baseline[r["prompt"]]
                for r in rows
            ]
        )
    )


def new_figure(rows: int = 1, columns: int = 1, **options):
    """(figure, its axes) in the house style."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": ""}
    )  # words as words, and the same names every time
    return plt.subplots(rows, columns, layout="constrained", squeeze=False, **options)


def save_figure(figure, out: str) -> None:
    """Write OUT.png and OUT.svg."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{out}.png", dpi=160)
    figure.savefig(f"{out}.svg", metadata={"Date": None})  # equal numbers are equal bytes
    plt.close(figure)
    print(f"wrote {out}.png and {out}.svg")


def kl_axis(axes) -> None:
    """A log axis of KL with numbers that can be read, fewer a decade where it spans many."""
    low, high = axes.dataLim.intervalx
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(
        matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if high < 50 * low else (1, 3))
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("KL(policy ‖ SFT) in nats, log scale")


def kind_of(run: dict) -> tuple[str, str]:
    """(online, offline or hybrid; the loss's name) of a run, by its args.json."""
    loss, _, mode = run["script"].partition("_")
    return mode, NAMES.get(loss, loss)


def baseline_of(runs: list[tuple[dict, list[dict]]]) -> str:
    """Whom the runs' win rates are over: the baseline policy, another baseline by its folder's name, or SFT."""
    names = sorted(
        {Path(run["baseline"]).name for run, evals in runs if evals[0]["baseline"] == "baseline"}
    )
    return (
        " or ".join("the baseline policy" if name == "baseline" else name for name in names)
        or "SFT"
    )


def one_setup(runs: list[dict]) -> bool:
    """Whether runs, by their args.json, began with one policy and met one baseline: by the files, or by their names."""
    end = "_sha256" if all("model_sha256" in run for run in runs) else ""
    return len({(run.get(f"model{end}"), run.get(f"baseline{end}")) for run in runs}) == 1


def draw(names: list[str], runs: list[tuple[dict, list[dict]]], out: str, title: str) -> None:
    """Write the picture. Up to six runs have a colour each where they are of one kind, more are a cloud of one colour."""
    figure, ((axes,),) = new_figure(figsize=(8, 5.2))
    kinds, seen, others = [kind_of(run) for run, _ in runs], [], iter(OTHERS)
    for name, kind, (run, evals) in zip(names, kinds, runs):
        mode, loss = kind
        rows = [row for row in evals if row["kl"] > 0]
        apart = len(runs) <= 6 and kinds.count(kind) > 1
        label = (
            f"{mode} {loss}, {name}" if apart else f"{mode} {loss}" if kind not in seen else None
        )
        color = next(others) if apart and kind in seen else COLORS.get(mode, "black")
        seen.append(kind)
        axes.errorbar(
            [row["kl"] for row in rows],
            [row["win_rate"] for row in rows],
            [row["win_rate_stderr"] for row in rows],
            [row["kl_stderr"] for row in rows],
            color=color,
            marker=MARKERS.get(run["script"].partition("_")[0], "o"),
            markersize=5,
            linewidth=1.6,
            elinewidth=0.7,
            alpha=0.9 if len(runs) <= 2 else 0.7,
            label=label,
        )
    sft = [row["win_rate"] for _, evals in runs for row in evals if row["step"] == 0]
    lines = {"SFT": sum(sft) / len(sft)}
    baseline = baseline_of(runs)
    if baseline != "SFT":
        lines[f"{baseline.removeprefix('the ')} (parity)"] = 0.5
    for name, height in lines.items():
        axes.axhline(height, color="grey", linestyle="--", linewidth=1.1, zorder=0)
        axes.annotate(
            name,
            (0, height),
            (6, 3),
            axes.get_yaxis_transform(),
            "offset points",
            ha="left",
            color="grey",
            fontsize=11,
        )
    kl_axis(axes)
    axes.set_ylabel(f"win rate against {baseline}")
    axes.set_title(title, fontsize=13, loc="left")
    axes.legend(frameon=False, loc="best")
    save_figure(figure, out)


def main(args: Args) -> None:
    if not args.runs:
        fail("name at least one run's folder")
    out = args.out.removesuffix(".png").removesuffix(".svg")
    if Path(out).is_dir():
        fail(f"--out {args.out}: is a folder; name the picture, without its ending")
    runs = [load_run(folder) for folder in args.runs]
    truths = []
    for folder, (run, evals) in zip(args.runs, runs):
        there = Path(run["baseline"] or "", "responses.jsonl").exists()  # else its setup was moved
        truths.append(true_wins(run, train_rows(folder, evals[-1]["step"])) if there else None)
    names = [Path(folder).absolute().name for folder in args.runs]
    draw(names, runs, out, args.title)
    if not one_setup([run for run, _ in runs]):
        print("these runs have not one setup: neither their KL nor their win rates compare")
    table = Table(
        title="last evaluation of each run, and the best: mean ± standard error over prompts",
        title_justify="left",
    )
    columns = (
        "run,script,seed,beta,step,KL (nats),win rate,held out,proxy's,ground truth,accuracy,best"
    )
    for column in columns.split(","):
        table.add_column(column, no_wrap=True)
    pm = "{:.3f} ± {:.3f}".format
    for name, folder, (run, evals), truth in zip(names, args.runs, runs, truths):
        last, best = evals[-1], max(evals, key=lambda row: row["win_rate"])
        prompts = [row["prompt"] for row in train_rows(folder, last["step"])]
        table.add_row(
            name,
            run["script"],
            str(run["seed"]),
            f"{run['beta']:g}",
            str(last["step"]),
            "{:.2f} ± {:.2f}".format(last["kl"], last["kl_stderr"]),
            pm(last["win_rate"], last["win_rate_stderr"]),
            "-"
            if last["win_rate_heldout"] is None
            else pm(last["win_rate_heldout"], last["win_rate_heldout_stderr"]),
            "-"
            if last["proxy_win_rate"] is None
            else pm(last["proxy_win_rate"], last["proxy_win_rate_stderr"]),
            "-" if truth is None else pm(*mean_stderr(truth, prompts)),
            "-" if last["accuracy"] is None else f"{last['accuracy']:.3f}",
            f"{best['win_rate']:.3f} at {best['kl']:.2f} nats",
        )
    Console(width=170, soft_wrap=True).print(table)
