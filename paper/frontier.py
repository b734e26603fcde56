"""The frontier: KL to SFT on a log axis against the win rate over the baseline. A point is an
evaluation, the line of a run its best win rate with at most that KL."""

import json
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path

import matplotlib
import torch
import tyro

from common import fail, load_rows, mean_stderr, sha256, wins
from prepare.reviews import all_prompts, ground_truth_score

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tandem", "font.size": 13})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

MARKERS = {"ipo": "o", "dpo": "s", "slic": "^", "bo2": "D"}
# the first run of each mode has its colour, further ones have others; all can be seen on black too
COLORS = {"online": "#ea580c", "offline": "#3b82f6", "hybrid": "#16a34a"}
OTHERS = ["#a855f7", "#0d9488", "#ec4899", "#b98700", "#71717a", "#ef4444", "#0891b2", "#65a30d"]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of runs"""
    out: str = "frontier"
    """picture to write, without its ending: OUT.png and OUT.svg"""
    title: str = ""
    """line above the picture"""


def json_rows(path: Path) -> list[dict]:
    """The rows of a log, [] without it. A run may be writing: the last line may not be whole."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


@dataclass
class Run:
    name: str
    folder: Path
    args: dict
    evals: list[dict]
    color: str

    def answers(self, step: int) -> list[dict]:
        """The policy's responses at an evaluation, a row for each prompt."""
        return json_rows(self.folder / "responses" / f"{step}.jsonl")


def load_runs(folders: tuple[str, ...]) -> list[Run]:
    """The runs, named by the last part of their folders, or by all of it where two are the same."""
    names = [Path(folder).absolute().name for folder in folders]
    runs, colors, others = [], dict(COLORS), cycle(OTHERS)
    for folder, name in zip(folders, names):
        try:
            args = json.loads(Path(folder, "args.json").read_text())
            evals, mode = json_rows(Path(folder, "evals.jsonl")), args["script"].partition("_")[2]
        except (OSError, ValueError, LookupError, TypeError) as error:
            fail(f"{folder}: not the folder of a run ({error})")
        if not evals:
            fail(f"{folder}: has no evaluation yet; there is one before the first step")
        name = name if names.count(name) == 1 else folder
        color = colors.pop(mode, None) or next(others)
        runs.append(Run(name, Path(folder), args, evals, color))
    return runs


def ground_truth_scores(run: Run, step: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """(prompts, scores of the policy's responses, scores of the baseline's) at an evaluation.

    By the reviews task's ground-truth score, on training prompts. Of none for other tasks, and
    where the baseline is not as the run met it.
    """
    rows = [row for row in run.answers(step) if row["split"] == "train"]
    prompts, folder = [row["prompt"] for row in rows], run.args["baseline"]
    other_task = not set(prompts) <= set(all_prompts())
    if other_task or not folder or sha256(folder) != run.args["baseline_sha256"]:
        return [], torch.empty(0), torch.empty(0)
    stored = [row for row in load_rows(f"{folder}/responses.jsonl") if row["split"] == "train"]
    ours, baseline = (
        torch.tensor([ground_truth_score(r["prompt"], r["response"], r["finished"]) for r in part])
        for part in (rows, stored[: len(rows)])
    )
    return prompts, ours, baseline


def plus_minus(mean: float | None, stderr: float | None, form: str = ".3f") -> str:
    return "–" if mean is None else f"{mean:{form}} ± {stderr:{form}}"


def result(run: Run) -> dict[str, str]:
    """What a table says of a run: its last evaluation, and its best by the golden model."""
    last, won = run.evals[-1], [row for row in run.evals if row["win_rate"] is not None]
    best = max(won, key=lambda row: row["win_rate"], default=None)
    prompts, ours, baseline = ground_truth_scores(run, last["step"])
    table = {"run": run.name, "script": run.args["script"], "step": str(last["step"])}
    table["KL (nats)"] = plus_minus(last["kl"], last["kl_stderr"], ".2f")
    names = {"win rate": "win_rate", "held out": "win_rate_heldout", "proxy's": "proxy_win_rate"}
    table |= {title: plus_minus(last[k], last[f"{k}_stderr"]) for title, k in names.items()}
    table["ground truth"] = plus_minus(*mean_stderr(wins(ours - baseline), prompts))
    table["accuracy"] = "–" if last["accuracy"] is None else f"{last['accuracy']:.3f}"
    table["best"] = f"{best['win_rate']:.3f} at {best['kl']:.2f} nats" if best else "–"
    return table


def baseline_of(runs: list[Run]) -> str:
    """Whom the win rates are over."""
    stored = any(run.evals[0]["baseline"] == "baseline" for run in runs)
    return "the baseline policy" if stored else "SFT"


def one_setup(runs: list[Run]) -> bool:
    """Whether runs began with one policy and met one baseline."""
    return len({(run.args["model_sha256"], run.args["baseline_sha256"]) for run in runs}) == 1


def grey_line(axes, height: float, name: str) -> None:
    axes.axhline(height, color="grey", linestyle="--", linewidth=1, zorder=0)
    place = (0, height), (6, 3), axes.get_yaxis_transform(), "offset points"
    axes.annotate(name, *place, color="grey")


def draw(axes, runs: list[Run], metric: str = "win_rate") -> None:
    """Evaluations with standard errors, the best at each KL, and lines at parity and at SFT."""
    farthest = max(row["kl"] for run in runs for row in run.evals)
    for run in runs:
        rows = [row for row in run.evals if row["kl"] > 0 and row[metric] is not None]
        rows.sort(key=lambda row: row["kl"])
        columns = ("kl", metric, f"{metric}_stderr", "kl_stderr")
        style = {"color": run.color, "markersize": 5, "elinewidth": 0.8, "alpha": 0.6}
        style |= {"marker": MARKERS.get(run.args["script"].partition("_")[0], "o"), "ls": ""}
        axes.errorbar(*([row[name] for row in rows] for name in columns), **style)
        budgets = [row["kl"] for row in rows] + [farthest]
        best = [*accumulate((row[metric] for row in rows), max)]
        line = {"color": run.color, "label": run.name, "linewidth": 2, "where": "post"}
        axes.step(budgets, [*best, best[-1]], **line)
    sft = [run.evals[0][metric] for run in runs if run.evals[0][metric] is not None]
    grey_line(axes, sum(sft) / len(sft), "SFT")
    if baseline_of(runs) != "SFT":
        grey_line(axes, 0.5, "baseline policy (parity)")
    told = "points: evaluations; lines: the best with at most that KL"
    axes.set(xscale="log", xlabel=f"KL(policy ‖ SFT) in nats, log scale\n{told}")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def print_table(table: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def main(args: Args) -> None:
    if not args.runs:
        fail("name at least one run's folder")
    out = args.out.removesuffix(".png").removesuffix(".svg")
    runs = load_runs(args.runs)
    for run in runs:
        if run.evals[0]["win_rate"] is None:
            fail(f"{run.folder}: has no win rate to draw; a run needs --golden for it")
        if not any(row["kl"] > 0 for row in run.evals):
            fail(f"{run.folder}: has not moved from SFT yet; it is too early to draw it")
    figure, axes = plt.subplots(layout="constrained", figsize=(8, 5.2))
    draw(axes, runs)
    axes.set_ylabel(f"win rate against {baseline_of(runs)}")
    axes.set_title(args.title, fontsize=13, loc="left")
    axes.legend(frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{out}.png", dpi=160)
    figure.savefig(f"{out}.svg", metadata={"Date": None})
    print(f"wrote {out}.png and {out}.svg")
    if not one_setup(runs):
        print("these runs have not one setup: neither their KL nor their win rates compare")
    print("last evaluation of each run, and the best: mean ± standard error over prompts\n")
    results = [result(run) for run in runs]
    print_table([list(results[0]), *(list(row.values()) for row in results)])
