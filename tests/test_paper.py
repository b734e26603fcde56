"""Figure 1: which runs it needs, and how values are read off the curves."""

import json
import math
from dataclasses import replace

import pytest
import torch

from paper import fig1
from paper.runs import Curve, Run, join, load_curve, make, pending
from tests.conftest import call, read_jsonl


def curve(kl, wins, beta=0.1, steps=None):
    run = Run("ipo_offline", "nowhere", 1, 10, 5, {"beta": beta})
    wins = torch.tensor(wins, dtype=torch.float64)
    return Curve(run, steps or list(range(len(kl))), kl, wins, [f"prompt {i}" for i in range(wins.shape[1])])


def test_win_rate_at_a_kl_is_interpolated_in_log_kl_at_the_first_crossing():
    c = curve([0.0, 1.0, 4.0, 2.0, 9.0], [[0, 0], [0.2, 0.4], [0.6, 0.4], [0, 0], [1, 1]])
    assert fig1.at_kl(c, 2.0).tolist() == pytest.approx([0.4, 0.4])  # log 2 lies half way between log 1 and log 4
    assert fig1.at_kl(c, 4.0).tolist() == pytest.approx([0.6, 0.4])  # an evaluation itself
    share = math.log(3) / math.log(4)
    assert fig1.at_kl(c, 3.0).tolist() == pytest.approx([0.2 + 0.4 * share, 0.4])  # the first crossing, not 2 -> 9
    assert fig1.at_kl(c, 5.0) is not None and fig1.at_kl(c, 9.5) is None  # never beyond the end
    assert fig1.at_kl(c, 0.5) is None  # nor from 0 nats, whose logarithm is none
    assert fig1.at_kl(c.until(1), 2.0) is None and c.until(1).steps == [0, 1]


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    """Two candidates that are perfect on one half of the prompts and hopeless on the other: nothing is gained by choosing."""
    lucky_even, lucky_odd = torch.tensor([1.0, 0.0] * 4), torch.tensor([0.0, 1.0] * 4)
    values, chosen = fig1.best_of([lucky_even, lucky_odd])
    assert values.tolist() == [0.0] * 8 and chosen == [1, 0]
    better = torch.full((8,), 0.9)
    assert fig1.best_of([lucky_even * 0.5, better])[0].tolist() == pytest.approx([0.9] * 8)
    values, kl = fig1.peak([curve([0, 1, 2], [[0, 0], [0.6, 0.7], [0.5, 0.5]]), curve([0, 3], [[0, 0], [0.1, 0.2]])])
    assert values.tolist() == [0.6, 0.7] and kl == [1, 1]


def test_a_pool_that_does_not_reach_is_not_comparable():
    online = curve([0, 0.5, 1, 2, 4.5], [[0, 0], [0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.5, 0.5]])
    pool = [
        curve([0, 0.5, 2.5], [[0, 0], [0.1, 0.1], [0.2, 0.2]]),
        curve([0, 0.9, 1.8], [[0, 0], [0.1, 0.1], [0.1, 0.1]]),
    ]
    rows = {row[0]: row[1:] for row in fig1.compare(online, {"offline pool": pool})}
    assert rows["offline pool"][2] == rows["offline pool"][3] == "not comparable, ends at 2.5 nats"
    assert rows["online ahead of offline pool"][2:4] == ["-", "-"]
    at_one = 0.1 + 0.1 * math.log(1 / 0.5) / math.log(2.5 / 0.5)
    assert rows["offline pool"][0].startswith(f"{at_one:.3f}") and rows["offline pool"][0].endswith("of 2")
    assert rows["online ahead of offline pool"][0].startswith(f"{0.2 - at_one:+.3f}")
    assert rows["online"][4].startswith("0.500") and rows["online ahead of offline pool"][4].startswith("+0.300")


def test_the_grid_is_the_promised_one():
    online, pool = fig1.grid(fig1.Args(), 2)
    assert online.arguments == "--start starts/reviews-2 --seed 2 --steps 400 --eval-every 40".split()
    assert {(run.options["learning_rate"], run.options["beta"]) for run in pool} == {
        (rate, beta) for rate in (1.5e-4, 5e-4, 1.5e-3) for beta in (0.02, 0.05, 0.1, 0.5, 1.0)
    }
    assert {run.steps for run in pool} == {2000} and len({run.folder for run in pool}) == 15
    assert set(fig1.PAPER_BETAS) <= set(fig1.GRIDS["ipo"][1])
    text = call("-m", "paper", "fig1", "--list", "--starts", "nowhere/{seed}").stdout
    assert text.count("ipo_offline") == 90 and text.count("ipo_online") == 6  # each with a closer look at its beginning
    assert "96 runs, 96 of them and 3 starts to make" in text


def test_runs_are_made_once_and_named_by_what_they_depend_on(start, tmp_path, monkeypatch):
    options = {"batch_size": 4, "eval_prompts": 8, "kl_prompts": 4}
    common = {"start": str(start), "seed": 7, "steps": 3, "eval_every": 1, "root": str(tmp_path)}
    runs = [Run("ipo_online", options=options, **common)]
    runs += [Run("ipo_offline", options=options | {"beta": beta}, **common) for beta in (0.1, 0.5)]
    half_made = runs[1].folder.with_name(f"{runs[1].folder.name}.partial")
    half_made.mkdir(parents=True)
    (half_made / "metrics.jsonl").write_text("{")
    make(runs, jobs=2)
    assert pending(runs) == [] and not list(tmp_path.rglob("*.partial"))
    before = {run.folder: (run.folder / "args.json").stat().st_mtime_ns for run in runs}
    make(runs, jobs=1)
    assert before == {run.folder: (run.folder / "args.json").stat().st_mtime_ns for run in runs}
    assert json.loads((runs[2].folder / "args.json").read_text())["beta"] == 0.5
    assert json.loads((runs[2].folder / "args.json").read_text())["threads"] == 1

    curves = [load_curve(run) for run in runs]
    rows = read_jsonl(runs[1].folder / "evals.jsonl")
    assert curves[1].steps == [0, 1, 2, 3] and curves[1].kl == [row["kl"] for row in rows]
    assert curves[1].wins.mean(1).tolist() == pytest.approx([row["win_rate"] for row in rows])
    fig1.draw("ipo", [(7, curves[0], curves[1:])], str(tmp_path / "picture"))
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG" and "seed 7" in (tmp_path / "picture.svg").read_text()

    beginning = replace(runs[1], steps=2, eval_every=2)
    make([beginning], jobs=1)
    joined = join(beginning, runs[1])
    assert joined.steps == [0, 2, 3] and joined.kl == [curves[1].kl[i] for i in joined.steps]
    with pytest.raises(SystemExit, match="is not the beginning of"):
        join(beginning, runs[2])

    changed = Run("ipo_offline", options=options | {"beta": 0.5}, **(common | {"seed": 8}))
    assert changed.folder != runs[2].folder and pending([changed]) == [changed]


def test_a_failed_run_is_named_with_its_log(start, tmp_path):
    run = Run("ipo_offline", str(start), 7, 3, 1, {"max_response_tokens": 3}, str(tmp_path))
    with pytest.raises(SystemExit, match=r"ipo_offline.py .*: exit code 1; see .*\.log"):
        make([run], jobs=1)
    assert "--max-response-tokens is 3" in run.folder.with_name(f"{run.folder.name}.log").read_text()
    assert not run.folder.exists()
