"""Finished runs as one page: the frontier, curves, the same prompts answered by each run, arguments and times.

    python tools/report.py runs/demo/ipo_offline runs/demo/ipo_online --out report.html

The page needs nothing beside it: no server, no network. A run that still goes on is shown as far as it has come.
"""

import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro
from markupsafe import Markup, escape

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # a script finds what lies beside it, and common.py lies above

from common import check_ranges, fail, mean_stderr, run_command  # noqa: E402
from paper.frontier import (  # noqa: E402
    COLORS,
    MARKERS,
    OTHERS,
    baseline_of,
    json_rows,
    kl_axis,
    new_figure,
    one_setup,
    plt,
    true_wins,
)
from tools import page, write_page  # noqa: E402

# a run's colour on light and on dark ground: that of its side, or, where another run has it already, one of the others
SIDES = {"online": "#fb923c", "offline": "#7aa2ff", "hybrid": "#4ade80"}
SIDES = {side: (COLORS[side], dark) for side, dark in SIDES.items()}
DARK = ["#c792ff", "#2dd4bf", "#f783b6", "#e3c04d", "#b4bcc5", "#ff8080", "#67d4ec", "#b6d957"]
INK, QUIET = "#010203", "#040506"  # in the pictures these stand for the page's own colours

PREFERENCE_MODELS = {"win_rate": "the golden preference model", "proxy_win_rate": "the proxy"}
CURVES = {  # caption: columns of evals.jsonl, the second of which is dashed; and where a line helps to read them
    "KL(policy ‖ SFT), nats": (["kl"], None),
    "Win rate by the golden preference model and, dashed, by the proxy; dotted: parity": (
        ["win_rate", "proxy_win_rate"],
        0.5,
    ),
    "Accuracy as a classifier of the data's pairs; dotted: chance": (["accuracy"], 0.5),
    "Log-ratio to SFT of the data's chosen and, dashed, rejected responses": (
        ["chosen_logratio", "rejected_logratio"],
        0.0,
    ),
    "Length of a response, tokens": (["response_length"], None),
}


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of runs, at most 8; the first ones of either side get the colours that they have in the paper's figures"""
    out: str = "report.html"
    """the page to write"""
    prompts: int = 6
    """so many prompts are shown with their answers"""
    nats: tuple[float, ...] = (1.0, 2.0, 4.0)
    """KL to SFT at which answers are shown, from the evaluation nearest to it"""


@dataclass
class Run:
    """What the page knows of a run."""

    name: str
    folder: Path
    args: dict
    metrics: list[dict]
    timings: list[dict]
    evals: list[dict]
    color: str
    dark: str

    @property
    def state(self) -> str:
        done = len(self.metrics)
        return (
            f"{done} steps"
            if (self.folder / "policy").exists()
            else f"unfinished: {done} of {self.args['steps']} steps"
        )

    def answers(self, step: int) -> Path:
        """The file with what it answered at an evaluation."""
        return self.folder / "responses" / f"{step}.jsonl"


def by_prompt(path: Path) -> dict[str, dict]:
    """A file's rows by their prompts; of a prompt that comes twice, the first."""
    found = {}
    for row in json_rows(path):
        found.setdefault(row["prompt"], row)
    return found


def load_runs(folders: tuple[str, ...]) -> list[Run]:
    """The runs by the names of their folders, or by the whole paths where two have one name."""
    names = [Path(folder).absolute().name for folder in folders]
    sides, others, runs = dict(SIDES), list(zip(OTHERS, DARK)), []
    for folder, name in zip(folders, names):
        try:
            args = json.loads(Path(folder, "args.json").read_text())
            rows = {log: json_rows(Path(folder, f"{log}.jsonl")) for log in LOGS}
            side = args["script"].rpartition("_")[2]
        except (OSError, ValueError, LookupError, TypeError) as error:
            fail(f"{folder}: not the folder of a run ({error})")
        if not rows["evals"]:
            fail(
                f"{folder}: has no evaluation yet; there is one as soon as the run has begun to train"
            )
        color, dark = sides.pop(side, None) or others.pop(0)
        runs.append(
            Run(
                name if names.count(name) == 1 else folder,
                Path(folder),
                args,
                color=color,
                dark=dark,
                **rows,
            )
        )
    return runs


# ---------------------------------------------------------------------------------------------------------------- pictures


def as_svg(figure, name: str, label: str, runs: list[Run]) -> Markup:
    """A picture to stand within a page: the page's colours, which change with its ground, and ids that are its own."""
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    plt.close(figure)
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for place in ('id="', "url(#", 'href="#'):
        svg = svg.replace(place, f"{place}{name}-")
    own = {INK: "currentColor", QUIET: "var(--quiet)"} | {
        run.color: f"var(--run{i})" for i, run in enumerate(runs)
    }
    for color, variable in own.items():
        svg = svg.replace(color, variable)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def draw_frontier(runs: list[Run], metric: str, baseline: str) -> Markup:
    """KL against win rate, with standard errors."""
    figure, ((axes,),) = new_figure(figsize=(6.6, 4.4))
    for run in runs:
        rows = [row for row in run.evals if row["kl"] > 0 and row[metric] is not None]
        marker = MARKERS.get(run.args["script"].partition("_")[0], "o")
        axes.errorbar(
            [row["kl"] for row in rows],
            [row[metric] for row in rows],
            [row[f"{metric}_stderr"] for row in rows],
            [row["kl_stderr"] for row in rows],
            color=run.color,
            marker=marker,
            markersize=5,
            linewidth=1.8,
            elinewidth=0.8,
        )
        for row in rows[-1:]:
            axes.plot(row["kl"], row[metric], marker, color=run.color, markersize=11)
    sft = [
        row[metric]
        for run in runs
        for row in run.evals
        if row["step"] == 0 and row[metric] is not None
    ]
    for name, height in [("parity", 0.5)] + [("SFT", sum(sft) / len(sft))] * (baseline != "SFT"):
        axes.axhline(height, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
        axes.annotate(
            name,
            (0, height),
            (4, 3),
            axes.get_yaxis_transform(),
            "offset points",
            color=QUIET,
            fontsize=11,
        )
    kl_axis(axes)
    axes.set_ylabel(f"win rate by {PREFERENCE_MODELS[metric]}")
    return as_svg(
        figure,
        "frontier",
        f"KL to SFT against the win rate by {PREFERENCE_MODELS[metric]}, a curve a run",
        runs,
    )


def draw_loss(runs: list[Run], name: str, caption: str) -> Markup:
    """Every step's loss, and its mean over the steps before."""
    figure, ((axes,),) = new_figure(figsize=(5.4, 3.3))
    for run in runs:
        losses, window = [row["loss"] for row in run.metrics], max(1, len(run.metrics) // 20)
        axes.plot(losses, color=run.color, linewidth=0.8, alpha=0.3)
        if losses:
            means = np.convolve(losses, np.full(window, 1 / window), "valid")
            axes.plot(range(window - 1, len(losses)), means, color=run.color, linewidth=1.8)
    axes.set_xlabel("step")
    return as_svg(figure, name, caption, runs)


def draw_curve(
    runs: list[Run], name: str, caption: str, keys: list[str], line: float | None
) -> Markup:
    """Columns of the evaluations over steps, with standard errors where there are some."""
    figure, ((axes,),) = new_figure(figsize=(5.4, 3.3))
    if line is not None:
        axes.axhline(line, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
    for run in runs:
        for key, style in zip(keys, ("-", "--")):
            rows = [row for row in run.evals if row.get(key) is not None]
            steps, values = [row["step"] for row in rows], np.array([row[key] for row in rows])
            errors = np.array([row.get(f"{key}_stderr", 0.0) for row in rows])
            axes.plot(
                steps, values, style, color=run.color, marker="o", markersize=3.5, linewidth=1.8
            )
            axes.fill_between(
                steps, values - errors, values + errors, color=run.color, alpha=0.18, linewidth=0
            )
    axes.set_xlabel("step")
    return as_svg(figure, name, caption, runs)


# ------------------------------------------------------------------------------------------------------- answers and tables


def level_at(nats: float) -> str:
    return f"near {nats:g} nat{'s' * (nats != 1)}"


def choose_evaluations(run: Run, nats: tuple[float, ...]) -> dict[str, dict]:
    """The evaluations whose answers are shown: before training, nearest to each KL (within a factor of 1.4), the last."""
    *before, last = [row for row in run.evals if run.answers(row["step"]).exists()] or [None]
    chosen = {"SFT": before[0]} if before else {}
    for goal in nats:
        near = [
            row
            for row in before
            if row["kl"] > 0 and abs(math.log(row["kl"] / goal)) < math.log(1.4)
        ]
        if near:
            chosen[level_at(goal)] = min(near, key=lambda row: abs(math.log(row["kl"] / goal)))
    return chosen | ({"last" if before else "SFT": last} if last else {})


def verdict(answer: dict) -> tuple[str, str] | None:
    """(won, lost or tie; the same with model and margin) over the baseline's answer: by golden, or else by the proxy."""
    for key, preference_model in PREFERENCE_MODELS.items():
        margin = answer.get(f"{key}_margin")
        if margin is not None:
            word = "won" if margin > 0 else "lost" if margin < 0 else "tie"
            return word, f"{preference_model}: {word}" + (
                f" by {abs(margin):.2g}" if margin else ""
            )
    return None


def side_by_side(runs: list[Run], count: int, nats: tuple[float, ...]) -> list[dict]:
    """For each of the first prompts that all runs have: rows of answers, one from each run or one for all."""
    chosen = [choose_evaluations(run, nats) for run in runs]
    answers = [
        {level: by_prompt(run.answers(row["step"])) for level, row in rows.items()}
        for run, rows in zip(runs, chosen)
    ]
    files = [file for levels in answers for file in levels.values()]
    prompts = [prompt for prompt in (files or [{}])[0] if all(prompt in file for file in files)]
    baseline = baseline_answers(runs)

    def cell(i, level, prompt):
        if level not in chosen[i]:
            return None
        answer = answers[i][level][prompt]
        return {"run": i, "answer": answer, "row": chosen[i][level], "verdict": verdict(answer)}

    cards = []
    for prompt in prompts[:count]:
        rows = {
            level: [cell(i, level, prompt) for i in range(len(runs))]
            for level in ("SFT", *map(level_at, nats), "last")
        }
        if (
            len({cell and cell["answer"]["response"] for cell in rows["SFT"]}) == 1
        ):  # equal seeds, equal samples
            rows["SFT"] = [rows["SFT"][0] | {"run": None}]
        if prompt in baseline:
            rows = {
                "baseline": [
                    {"run": None, "answer": baseline[prompt], "row": None, "verdict": None}
                ]
            } | rows
        cards.append(
            {
                "prompt": prompt,
                "rows": {level: cells for level, cells in rows.items() if any(cells)},
            }
        )
    return cards


def baseline_answers(runs: list[Run]) -> dict[str, dict]:
    """The baseline policy's stored responses by prompt, where all runs met the same and its file is still there."""
    folders = {run.args.get("baseline") for run in runs}
    path = Path(folders.pop() or "", "responses.jsonl")
    return by_prompt(path) if not folders and path.is_file() else {}


def plus_minus(row: dict, key: str, form: str = ".3f") -> str:
    if row.get(key) is None:
        return "–"
    return f"{row[key]:{form}} ± {row[f'{key}_stderr']:{form}}"


def results(runs: list[Run], metric: str | None) -> list[list[str]]:
    """The last evaluation of each run, and its best."""
    table = []
    for run in runs:
        last, truth, baseline = run.evals[-1], None, baseline_answers([run])
        file = run.answers(last["step"])
        rows = [row for row in json_rows(file) if row["split"] == "train"] if file.exists() else []
        if rows and all(row["prompt"] in baseline for row in rows):
            truth = true_wins(run.args, rows)
        judged = [row for row in run.evals if metric and row[metric] is not None]
        best = max(judged, key=lambda row: row[metric], default=None)
        table.append(
            [
                str(last["step"]),
                plus_minus(last, "kl", ".2f"),
                *(
                    plus_minus(last, key)
                    for key in ("win_rate", "win_rate_heldout", "proxy_win_rate")
                ),
                "–"
                if truth is None
                else "{:.3f} ± {:.3f}".format(*mean_stderr(truth, [row["prompt"] for row in rows])),
                "–" if last["accuracy"] is None else f"{last['accuracy']:.3f}",
                f"{last['response_length']:.1f}",
                f"{best[metric]:.3f} at {best['kl']:.2f} nats" if best else "–",
            ]
        )
    return table


def arguments(runs: list[Run]) -> tuple[list, list]:
    """(those that differ, those that are the same): name and value in each run, None where its script has no such argument."""
    names = dict.fromkeys(name for run in runs for name in run.args)
    rows = [
        (name, [str(run.args[name]) if name in run.args else None for run in runs])
        for name in names
    ]
    return [row for row in rows if len(set(row[1])) > 1], [
        row for row in rows if len(set(row[1])) == 1
    ]


def times(run: Run) -> dict | None:
    """Medians over the steps, since the first ones are slower than the rest."""
    if not run.timings:
        return None
    parts = {
        part: median(row[f"time/{part}"] for row in run.timings)
        for part in ("sample", "label", "train")
    }
    memory = [row["peak_memory_bytes"] for row in run.timings if row["peak_memory_bytes"]]
    return {
        "parts": parts,
        "step": sum(parts.values()),
        "speed": median(row["tokens_per_second"] for row in run.timings),
        "all": sum(row[f"time/{part}"] for row in run.timings for part in parts),
        "memory": max(memory) / 2**30 if memory else None,
    }


def main(args: Args) -> None:
    check_ranges(args, zero=("prompts",))
    if not 0 < len(args.runs) <= 8:
        fail(
            f"{len(args.runs)} runs named; a page shows 1 to 8 of them (python -m paper frontier draws any number)"
        )
    runs = load_runs(args.runs)
    metric = next(
        (
            key
            for key in PREFERENCE_MODELS
            if any(row[key] is not None for run in runs for row in run.evals)
        ),
        None,
    )
    baseline = baseline_of([(run.args, run.evals) for run in runs])
    style = {"svg.hashsalt": "tandem"}  # equal runs, equal pages
    style |= dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    with plt.rc_context(style):
        caption = "Loss of each batch, and its mean over a twentieth of the steps; other losses have other scales"
        curves = [(caption, draw_loss(runs, "loss", caption))]
        for i, (caption, (keys, line)) in enumerate(CURVES.items()):
            if any(row.get(key) is not None for run in runs for row in run.evals for key in keys):
                curves.append((caption, draw_curve(runs, f"curve{i}", caption, keys, line)))
        moved = any(
            row["kl"] > 0 and metric and row[metric] is not None
            for run in runs
            for row in run.evals
        )
        frontier = draw_frontier(runs, metric, baseline) if moved else None
    differ, same = arguments(runs)
    text = page(
        "report.html",
        runs=runs,
        preference_model=PREFERENCE_MODELS.get(metric),
        baseline=baseline,
        one_setup=one_setup([run.args for run in runs]),
        unjudged=[
            run.name for run in runs if metric and all(row[metric] is None for row in run.evals)
        ],
        frontier=frontier,
        curves=curves,
        results=results(runs, metric),
        cards=side_by_side(runs, args.prompts, args.nats),
        differ=differ,
        same=same,
        times=[times(run) for run in runs],
        plus_minus=plus_minus,
    )
    write_page(args.out, text)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
