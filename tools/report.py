"""Runs as one page: the frontier, curves over the steps, and the same prompts along each run.

    python tools/report.py runs/demo/offline runs/demo/online --out report.html

The page needs no server and no network. A run that still trains is shown as far as it has come.
"""

import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import tyro
from markupsafe import Markup

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where common.py is

from common import check_ranges, fail, run_command  # noqa: E402
from paper import frontier  # noqa: E402
from paper.frontier import Run, json_rows, plt  # noqa: E402
from tools import write_page  # noqa: E402

INK = "#010203"  # in the pictures it stands for the page's own colour of text
MODELS = {"win_rate": "the golden preference model", "proxy_win_rate": "the proxy"}
CURVES = {  # caption: columns of evals.jsonl, the second of which is dashed
    "KL(policy ‖ SFT), nats": ["kl"],
    "Win rate by the golden preference model; dashed: by the proxy": list(MODELS),
    "Accuracy as a classifier of the data's pairs": ["accuracy"],
    "Log-ratio to SFT of the data's chosen responses; dashed: of the rejected ones": [
        "chosen_logratio",
        "rejected_logratio",
    ],
    "Length of a response, tokens": ["response_length"],
}


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of runs, at most 8"""
    out: str = "report.html"
    """the page to write"""
    prompts: int = 6
    """prompts that are shown with their responses"""
    nats: tuple[float, ...] = (1.0, 2.0, 4.0)
    """KL to SFT at which responses are shown, from the evaluation nearest to it"""


# ---------------------------------------------------------------------------------------- pictures


def as_svg(figure, name: str) -> Markup:
    """A picture to stand within a page: in the page's colour of text, with ids of its own."""
    file, empty = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=empty)
    plt.close(figure)
    svg = file.getvalue()[file.getvalue().index("<svg") :].replace(INK, "currentColor")
    for place in ('id="', "url(#", 'href="#'):
        svg = svg.replace(place, f"{place}{name}-")
    return Markup(svg)


def pictures(runs: list[Run], metric: str | None) -> list[tuple[str, Markup]]:
    """(caption, picture): the frontier where there is a win rate, losses, and each curve."""
    drawn = []

    def add(caption: str, draw):
        figure, axes = plt.subplots(layout="constrained", figsize=(6, 3.8))
        axes.set_xlabel("step")
        axes.margins(x=0.1)  # room for the names of lines at the left
        axes.locator_params(axis="x", nbins=6)
        draw(axes)
        drawn.append((caption, as_svg(figure, f"picture{len(drawn)}")))

    if any(row["kl"] > 0 and row.get(metric) is not None for run in runs for row in run.evals):
        caption = f"Win rate by {MODELS[metric]} against KL to SFT"
        add(caption, lambda axes: frontier.draw(axes, runs, metric))

    def losses(axes):
        for run in runs:
            values = [row["loss"] for row in json_rows(run.folder / "metrics.jsonl")]
            window = len(values) // 20 + 1
            ends = range(window, len(values) + 1)
            axes.plot(ends, [mean(values[end - window : end]) for end in ends], color=run.color)

    told = "Loss: the mean over a twentieth of the steps before; other losses have other scales"
    add(told, losses)
    for caption, keys in CURVES.items():

        def curve(axes, keys=keys):
            for run in runs:
                for key, style in zip(keys, ("-", "--")):
                    rows = [row for row in run.evals if row[key] is not None]
                    steps, values = [row["step"] for row in rows], [row[key] for row in rows]
                    errors = [row.get(f"{key}_stderr", 0.0) for row in rows]
                    look = {"color": run.color, "marker": "o", "markersize": 3.5}
                    axes.errorbar(steps, values, errors, linestyle=style, elinewidth=0.8, **look)

        if any(row[key] is not None for run in runs for row in run.evals for key in keys):
            add(caption, curve)
    return drawn


# --------------------------------------------------------------------------- responses and tables


def choose_evaluations(run: Run, nats: tuple[float, ...]) -> dict[str, dict]:
    """{level: evaluation}: before training, nearest to each KL within a factor of 1.4, the last."""
    chosen = {"SFT": run.evals[0]}
    for goal in nats:
        gaps = {abs(math.log(row["kl"] / goal)): row for row in run.evals if row["kl"] > 0}
        if gaps and min(gaps) < math.log(1.4):
            chosen[f"KL near {goal:g}"] = gaps[min(gaps)]
    return chosen | ({"last": run.evals[-1]} if len(run.evals) > 1 else {})


def verdict(answer: dict) -> str | None:
    """Whether a response has won over the baseline's: by golden, or else by the proxy."""
    for key, model in MODELS.items():
        margin = answer.get(f"{key}_margin")
        if margin is not None:
            told = "won" if margin > 0 else "lost" if margin < 0 else "tie"
            return f"{model}: {told}" + (f" by {abs(margin):.2g}" if margin else "")
    return None


def cards(runs: list[Run], count: int, nats: tuple[float, ...]) -> list[dict]:
    """For each of the first prompts that all runs have: {level: [a run's response, or None]}."""
    answers = []  # for each run {level: {prompt: its response}}
    for run in runs:
        levels = {}
        for level, row in choose_evaluations(run, nats).items():
            rows = reversed(run.answers(row["step"]))  # of a prompt that comes twice, the first
            levels[level] = {r["prompt"]: r | {"row": row, "verdict": verdict(r)} for r in rows}
        answers.append(levels)
    shared = set.intersection(*(set(texts) for levels in answers for texts in levels.values()))
    first = dict.fromkeys(row["prompt"] for row in runs[0].answers(0) if row["prompt"] in shared)
    made = []
    for prompt in list(first)[:count]:
        rows = {}
        for level in ("SFT", *(f"KL near {goal:g}" for goal in nats), "last"):
            cells = [levels[level][prompt] if level in levels else None for levels in answers]
            if any(cells):
                rows[level] = cells
        made.append({"prompt": prompt, "rows": rows})
    return made


def results(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """(what, its value in each run): of the last evaluation, and the median cost of a step."""
    rows = []
    for run in runs:
        row = frontier.result(run) | {"tokens": f"{run.evals[-1]['response_length']:.1f}"}
        steps = json_rows(run.folder / "timings.jsonl")
        memory = max((step["peak_memory_bytes"] for step in steps), default=0)
        row["GPU memory"] = f"{memory / 2**30:.2f} GiB" if memory else "–"
        seconds = [step["seconds"] for step in steps]
        row["seconds a step"] = f"{median(seconds):.3g}" if steps else "–"
        row["steps"] = f"{len(steps)} of {run.args['steps']}"
        rows.append(row)
    return [(name, [row[name] for row in rows]) for name in list(rows[0])[1:]]  # not "run"


def arguments(runs: list[Run]) -> tuple[list, list]:
    """(those that differ, those that are the same): name and value in each run, None without it."""
    differ, same = [], []
    for name in dict.fromkeys(name for run in runs for name in run.args):
        values = [str(run.args[name]) if name in run.args else None for run in runs]
        (differ if len(set(values)) > 1 else same).append((name, values))
    return differ, same


def main(args: Args) -> None:
    check_ranges(args, zero=("prompts",))
    if not 0 < len(args.runs) <= 8:
        told = "a page shows 1 to 8 of them (python -m paper frontier draws any number)"
        fail(f"{len(args.runs)} runs named; {told}")
    runs = frontier.load_runs(args.runs)
    told = [name for name in MODELS if any(run.evals[0][name] is not None for run in runs)]
    metric = told[0] if told else None
    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with plt.rc_context(dict.fromkeys(colors, INK)):
        drawn = pictures(runs, metric)
    values = {"runs": runs, "results": results(runs), "arguments": arguments(runs)}
    values |= {"model": MODELS.get(metric), "baseline": frontier.baseline_of(runs)}
    values |= {"one_setup": frontier.one_setup(runs), "cards": cards(runs, args.prompts, args.nats)}
    write_page(args.out, "report.html", pictures=drawn, **values)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
