"""Figure 1: which runs it needs, and how values are read off the curves."""

import inspect
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

import ipo_offline
import ipo_online
from paper import fig1, fig13
from paper.runs import Curve, Run, join, load_curve, make, pending
from tests.conftest import call, read_jsonl


def curve(kl, wins, beta=0.1, steps=None):
    run = Run("ipo_offline", "nowhere", 1, 10, 5, {"beta": beta})
    wins = torch.tensor(wins, dtype=torch.float64)
    wins = torch.stack([wins, wins / 2], 1)  # golden's verdicts, and a rule that gives half of each
    prompts = [f"prompt {i}" for i in range(wins.shape[2])]
    return Curve(run, steps or list(range(len(kl))), kl, wins, ["golden", "rule"], prompts)


def golden(values):
    assert torch.allclose(values[1], values[0] / 2)
    return values[0].tolist()


def test_win_rate_at_a_kl_is_interpolated_in_log_kl_at_the_first_crossing():
    c = curve([0.0, 1.0, 4.0, 2.0, 9.0], [[0, 0], [0.2, 0.4], [0.6, 0.4], [0, 0], [1, 1]])
    assert golden(fig1.at_kl(c, 2.0)) == pytest.approx([0.4, 0.4])  # log 2 lies half way between log 1 and log 4
    assert golden(fig1.at_kl(c, 4.0)) == pytest.approx([0.6, 0.4])  # an evaluation itself
    share = math.log(3) / math.log(4)
    assert golden(fig1.at_kl(c, 3.0)) == pytest.approx([0.2 + 0.4 * share, 0.4])  # the first crossing, not 2 -> 9
    assert fig1.at_kl(c, 5.0) is not None and fig1.at_kl(c, 9.5) is None  # never beyond the end
    assert fig1.at_kl(c, 0.5) is None  # nor from 0 nats, whose logarithm is none
    assert fig1.at_kl(c.until(1), 2.0) is None and c.until(1).steps == [0, 1]


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    """Two candidates that are perfect on one half of the prompts and hopeless on the other: nothing is gained by choosing."""
    lucky_even, lucky_odd = torch.tensor([[1.0, 0.0] * 4]), torch.tensor([[0.0, 1.0] * 4])
    values, chosen = fig1.best_of([lucky_even, lucky_odd])
    assert values.tolist() == [[0.0] * 8] and chosen == [1, 0]
    better = torch.full((1, 8), 0.9)
    assert fig1.best_of([lucky_even * 0.5, better])[0][0].tolist() == pytest.approx([0.9] * 8)
    values, kl = fig1.peak([curve([0, 1, 2], [[0, 0], [0.6, 0.7], [0.5, 0.5]]), curve([0, 3], [[0, 0], [0.1, 0.2]])])
    assert golden(values) == [0.6, 0.7] and kl == [1, 1]


def test_each_judge_chooses_for_itself():
    """Golden likes the last evaluation best and the rule the one before: both tables say so, the other's verdict beside."""
    verdicts = torch.tensor([[[0.0] * 4, [0.0] * 4], [[0.3] * 4, [0.6] * 4], [[0.9] * 4, [0.1] * 4]])
    hacked = replace(curve([0, 2, 9], [[0] * 4] * 3), wins=verdicts)
    (_, *by_golden), *_ = fig1.compare(hacked, {})
    (_, *by_rule), *_ = fig1.compare(hacked.judged_by(1), {})
    assert by_golden[-1] == "0.900 ± 0.000, rule 0.100 at 9.0, 9.0 nats"
    assert by_rule[-1] == "0.600 ± 0.000, golden 0.300 at 2.0, 2.0 nats"


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
    assert rows["offline pool"][0].startswith(f"{at_one:.3f}") and rows["offline pool"][0].endswith("best of 2 runs")
    assert rows["online ahead of offline pool"][0].startswith(f"{0.2 - at_one:+.3f}")
    assert f"rule {at_one / 2:.3f}" in rows["offline pool"][0]
    late = [curve([0, 1.5, 3], [[0, 0], [0.1, 0.1], [0.2, 0.2]])]
    rows_late = {row[0]: row[1:] for row in fig1.compare(online, {"late": late})}
    assert rows_late["late"][0] == "passed before the first evaluation" and rows_late["online ahead of late"][0] == "-"
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
    make(runs, jobs=2)
    assert pending(runs) == [] and not list(tmp_path.rglob("*.partial"))
    metrics = (runs[1].folder / "metrics.jsonl").read_bytes()
    half_made = runs[1].folder.rename(runs[1].folder.with_name(f"{runs[1].folder.name}.partial"))
    shutil.rmtree(half_made / "policy")
    (half_made / "metrics.jsonl").write_bytes(metrics[:-100])
    make(runs, jobs=1)
    assert (runs[1].folder / "metrics.jsonl").read_bytes() == metrics
    before = {run.folder: (run.folder / "args.json").stat().st_mtime_ns for run in runs}
    make(runs, jobs=1)
    assert before == {run.folder: (run.folder / "args.json").stat().st_mtime_ns for run in runs}
    assert json.loads((runs[2].folder / "args.json").read_text())["beta"] == 0.5
    assert json.loads((runs[2].folder / "args.json").read_text())["threads"] == 1

    curves = [load_curve(run) for run in runs]
    rows = read_jsonl(runs[1].folder / "evals.jsonl")
    assert curves[1].steps == [0, 1, 2, 3] and curves[1].kl == [row["kl"] for row in rows]
    assert curves[1].wins[:, 0].mean(1).tolist() == pytest.approx([row["win_rate"] for row in rows])
    text = call("-m", "paper", "frontier", runs[1].folder, "--out", tmp_path / "frontier").stdout
    assert f"{curves[1].wins[-1, 1].mean():.3f}" in text  # the rule's win rate, in both tables
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
    with monkeypatch.context() as patch:  # a loss that was edited is another run, a comment is not
        plain, before = inspect.getsource, runs[2].folder
        patch.setattr(inspect, "getsource", lambda module: plain(module) + "\n# a remark")
        assert runs[2].folder == before
        patch.setattr(inspect, "getsource", lambda module: plain(module).replace("2 * beta", "3 * beta"))
        assert runs[2].folder != before


def test_the_figure_from_the_first_run_to_the_table(start, tmp_path, monkeypatch, capsys):
    """python -m paper fig1 as a whole, on a grid of two runs of a few steps."""
    for module in (ipo_offline, ipo_online):
        monkeypatch.setattr(module.Args, "steps", 4)
    monkeypatch.setitem(fig1.GRIDS, "ipo", ((1,), (0.1, 0.02)))
    for name, value in {"TIMES": 2, "BEGINNING": 2, "EVAL_EVERY": {"online": 2, "offline": 4}}.items():
        monkeypatch.setattr(fig1, name, value)
    args = fig1.Args(seeds=(7,), starts=str(start), runs=str(tmp_path / "runs"), out=str(tmp_path / "fig1_{loss}"), jobs=2)
    fig1.main(replace(args, list=True))
    assert "6 runs, 6 of them and 0 starts to make" in capsys.readouterr().out
    monkeypatch.setattr(fig1, "beginning", lambda run, plain=fig1.beginning: replace(plain(run), eval_every=1))
    fig1.main(args)
    text = capsys.readouterr().out
    assert all(f"| {name}" in text for name in ("online", "offline pool", "online ahead of offline pool, 1x steps"))
    assert "the paper's betas" in text and "rule" in text and (tmp_path / "fig1_ipo.png").is_file()
    assert all(f"IPO, seed 7, chosen and judged by {judge}" in text for judge in ("golden", "rule"))
    assert "IPO, seed 7, judged by rule" in (tmp_path / "fig1_ipo.svg").read_text()
    with pytest.raises(SystemExit, match="every seed has a start of its own"):
        fig1.main(replace(args, seeds=(1, 2)))


def test_levels_of_shuffling_from_the_first_run_to_the_table(start, tmp_path, monkeypatch, capsys):
    """python -m paper fig13 as a whole, on runs of a few steps: the stream in its order is the online run."""
    for module in (ipo_offline, ipo_online):
        monkeypatch.setattr(module.Args, "steps", 4)
    monkeypatch.setattr(fig13, "LEVELS", ("none", "all"))
    args = fig13.Args(seeds=(7,), starts=str(start), runs=str(tmp_path / "runs"), out=str(tmp_path / "fig13_{loss}"), jobs=2)
    fig13.main(replace(args, list=True))
    assert "4 runs, 4 of them and 0 starts to make" in capsys.readouterr().out
    fig13.main(args)
    text = capsys.readouterr().out
    assert all(f"online ahead of {name}" in text for name in ("stream, shuffle none", "stream, shuffle all", "D_golden"))
    assert "seed 7: the stream in its order is the online run\n" in text
    assert "D_golden" in (tmp_path / "fig13_ipo.svg").read_text() and (tmp_path / "fig13_ipo.png").is_file()
    fig13.main(replace(args, list=True))
    assert "4 runs, 0 of them and 0 starts to make" in capsys.readouterr().out


def test_a_failed_run_is_named_with_its_log(start, tmp_path):
    run = Run("ipo_offline", str(start), 7, 3, 1, {"max_response_tokens": 3}, str(tmp_path))
    with pytest.raises(SystemExit, match=r"python -m ipo_offline .*: exit code 1; see .*\.log"):
        make([run], jobs=1)
    assert "--max-response-tokens is 3" in run.folder.with_name(f"{run.folder.name}.log").read_text()
    assert not run.folder.exists()
