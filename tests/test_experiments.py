"""The experiments: what is read off results, what a campaign makes, and what the pages get."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from common import load_pairs, load_policy, load_tokenizer
from paper import optimum, page, runs, stages, statistics, swept
from paper.runs import Job
from tests.conftest import SHORT, call, read_jsonl, write_jsonl


def result(*points):
    """A result of evaluations (KL, [golden on either half], [ground truth on either half])."""
    rows = [dict(zip(("kl", "golden", "truth"), point)) for point in points]
    told = {"step": 90, "responses": [" A review."], "reach": 0.1}
    told |= {"chosen_logratio": -1.0, "rejected_logratio": -3.0}
    for row in rows:
        row |= told | {"win_rate": row["golden"][0], "accuracy": row["golden"][1]}
        row["agreement"] = 0.9
    return {"evals": rows, "revision": "one", "prompts": [4, 4]}


SFT = 0, [0.1, 0.1], [0.1, 0.1]
ONE = result(SFT, (1, [0.30, 0.20], [0.2, 0.2]), (3, [0.6, 0.4], [0.3, 0.3]))
OTHER = result(SFT, (2, [0.25, 0.40], [0.5, 0.1]), (5, [0.9, 0.8], [0.2, 0.4]))


def test_a_budget_takes_what_is_chosen_on_the_other_half():
    def best(budget, judge="golden"):
        return statistics.best([ONE, OTHER], budget, judge)

    assert best(0.5) == 0.1  # SFT is in every budget
    assert best(1) == pytest.approx((0.20 + 0.30) / 2)
    assert best(2) == pytest.approx((0.20 + 0.25) / 2)  # chosen apart: both have luck in one half
    assert best(4) == pytest.approx((0.4 + 0.6) / 2)
    assert best(math.inf) == pytest.approx((0.8 + 0.9) / 2)
    assert best(2, "truth") == pytest.approx((0.1 + 0.2) / 2)
    assert best(2, "nobody") is None


def test_a_larger_budget_never_takes_less_and_useless_runs_change_nothing():
    draws = torch.rand(8, 20, 2, generator=torch.manual_seed(0)).tolist()

    def drawn(apart):  # the halves differ by a multiple of it
        return [
            result(*((12 * kl, [won, won + apart * i]) for i, (kl, won) in enumerate(run)))
            for run in draws
        ]

    some, same = drawn(0.001), drawn(0)
    curve = [statistics.best(same, k, "golden") for k in statistics.BUDGETS]
    assert curve == sorted(curve)
    useless = result(SFT, *((k, [0.0, 0.0], [0.0, 0.0]) for k in statistics.BUDGETS))
    for k in statistics.BUDGETS:
        assert statistics.best([useless, *some], k, "golden") == statistics.best(some, k, "golden")


def test_intervals_and_differences_by_hand():
    centre, half = statistics.interval([1, 2, 3, 4, 5])
    assert centre == 3 and half == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert statistics.told({1: 0.1, 2: 0.1}, "+") == "+0.100 [+0.100, +0.100] *"
    assert "*" not in statistics.told({1: 0.1, 2: -0.1}, "+")
    assert statistics.told({}) == "not made yet"
    groups = {"one": {1: [ONE], 2: [ONE]}, "other": {2: [OTHER], 3: [OTHER]}}
    report = statistics.Report("question", groups, Path())
    assert report.lead("one", "other", "golden") == {2: pytest.approx(0.175)}


def test_the_optima_by_brute_force():
    """Over 200 responses, uniform under mu, the last the best. g: log pi - log mu."""
    count, beta = 200, 0.3
    better, worse = torch.tril_indices(count, count, -1)

    def near(g, found):
        g = g.log_softmax(0) + math.log(count)
        assert (g.exp() * g).mean() == pytest.approx(found.kl, rel=0.02)
        assert (g[better] - g[worse]).mean() == pytest.approx(found.h, rel=0.02)

    one = torch.eye(count, dtype=torch.float64)
    targets = torch.full_like(one[better][:, :1], 1 / (2 * beta))
    least = torch.linalg.lstsq(one[better] - one[worse], targets, driver="gelsd").solution
    near(least[:, 0], optimum.offline_ipo(beta))

    g = torch.zeros(count, dtype=torch.float64)
    for _ in range(500):  # half a step to the optimum for pairs from pi
        pi = g.softmax(0)
        beaten = pi.cumsum(0) - pi / 2
        g = (g + beaten / beta) / 2
    near(g, optimum.online_ipo(beta))
    kls = [round(optimum.offline_ipo(b).kl, 2) for b in (0.1, 0.05, 0.02)]
    assert kls == [1.30, 2.00, 2.91]
    assert [round(optimum.online_ipo(b).kl, 2) for b in (0.1, 0.05, 0.02)] == [2.70, 7.00, 21.09]
    assert "no finite optimum" in call("-m", "paper", "optimum").stdout


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "WORK", tmp_path / "work")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    return tmp_path


def test_a_campaign_continues(setup, place):
    words = ["ipo_online.py", "--setup", setup, *SHORT, "--steps", 12, "--save-pairs"]
    job = Job("run", tuple(map(str, words)), "question", keeps=("online_pairs",), steps=12)
    runs.make([job], hours=1e-9)
    assert not job.done and runs.plan([job]) == [job]
    process = runs.start(job)
    while not list(job.folder.glob("checkpoint/[0-9]*")):
        assert process.poll() is None
    process.kill()
    process.wait()
    reader = Job("reader", ("-c", "raise SystemExit(3)"), needs=(job,))
    other = replace(job, name="whole")
    call(*words, "--out", other.folder)
    runs.keep(other)
    with pytest.raises(SystemExit, match="1 jobs failed, 0 wait"):
        runs.make([reader, other])
    assert job.done and job.there and other.done and runs.plan([job, other]) == []
    first, second = (json.loads(one.result.read_text()) for one in (job, other))
    assert first["evals"] == second["evals"] and first["revision"] == runs.revision()
    assert str(place) not in job.result.read_text().replace(first["command"], "")
    assert {path.name for path in job.folder.rglob("*") if path.is_file()} == {"train.jsonl"}
    row = first["evals"][-1]
    assert row["step"] == 12 and sum(first["prompts"]) == 8
    for judge, column in (("golden", "win_rate"), ("proxy", "proxy_win_rate")):
        assert sum(row[judge]) / 2 == pytest.approx(row[column], abs=1e-4)
    assert len(row["responses"]) == 3 and 0 <= row["reach"] <= 1 and len(row["truth"]) == 2


def test_the_estimate(place, monkeypatch):
    """All experiments together take at most 20 core-hours, at 1,600 steps, RLOO among them. Every
    command parses."""
    job = Job("run", ("ipo_online.py",), "question", seconds=360, steps=100)
    assert runs.estimate([job, job], {"online": 3.6}) == pytest.approx(0.4)
    job.result.parent.mkdir(parents=True)
    job.result.write_text('{"seconds_a_step": 7, "args": {"script": "ipo_online"}}')
    assert runs.measured() == runs.SECONDS | {"online": 7}
    monkeypatch.setattr(swept, "RLOO_BETAS", (1, 2))
    asked = [statistics.flat(q.arms, q.SEEDS) for q in page.QUESTIONS.values()]
    asked.append(statistics.flat(swept.pilot_arms, swept.PILOT_SEEDS))
    jobs = runs.plan([job for some in asked for job in some])
    assert len({job.name for job in jobs}) == len(jobs) and runs.estimate(jobs) < 20
    longest = max(runs.estimate([job]) for job in jobs)
    assert longest < 0.3  # what an interruption can delay
    for job in {" ".join(w for w in job.words if w[0] == "-"): job for job in jobs}.values():
        if job.side:
            script = importlib.import_module(job.words[0].removesuffix(".py"))
            tyro.cli(script.Args, args=job.words[1:])


def test_the_page(place, monkeypatch, capsys):
    """Without results it says so; with all of them it has every number, by hand for one."""
    page.main(page.Args(str(place / "findings.md")))
    assert "not made yet" in (out := capsys.readouterr().out) and "Not complete: 0 of 9 runs" in out
    monkeypatch.setattr(swept, "RLOO_BETAS", (1, 2))
    accuracy = {who: [0.5 + i / 20 for i in range(10)] for who in ("proxy", "online policy")}
    for question in page.QUESTIONS.values():
        for seed in question.SEEDS:
            for arm, jobs in question.arms(seed).items():
                for job in jobs:
                    found = OTHER if "online" in arm else ONE
                    found = {"accuracy": accuracy, "revision": "two"} if not job.side else found
                    job.result.parent.mkdir(parents=True, exist_ok=True)
                    job.result.write_text(json.dumps(found))
    (place / "findings.md").write_text("Before\n<!-- frontier -->\nstale\n<!-- end -->\nbehind\n")
    page.main(page.Args(str(place / "findings.md")))
    text, rest = (place / "findings.md").read_text(), capsys.readouterr().out
    assert text.startswith("Before\n") and text.endswith("behind\n") and "stale" not in text
    cells = "0.325 [0.325, 0.325] | 0.500 [0.500, 0.500] | -0.175 [-0.175, -0.175] * |"
    assert f"| DPO | golden | {cells}" in text and "not made yet" not in text
    assert "has no mark for coverage" in rest and "made by 2 versions" in rest
    assert "Not complete" not in text + rest
    assert "last fifth less first fifth of the run: +0.400" in rest
    for picture in (place / "pictures").iterdir():
        assert picture.read_bytes()[16:20] == (1200).to_bytes(4, "big")
    numbers = (place / "findings.csv").read_text().splitlines()
    assert 'frontier,"DPO, online",11,"win rate, golden",4,0.325' in numbers


def test_stages(setup, tmp_path):
    """Pairs of two policies have golden's labels; golden classifies them as it has labelled them;
    a deeper model is the same at first."""
    source, pairs = str(setup / "d_golden"), tmp_path / "pairs"
    sides = str(setup / "sft"), str(setup / "baseline")
    stages.pairs(sides, str(setup / "golden"), source, 400, 1, str(pairs))
    rows = read_jsonl(pairs / "train.jsonl")
    assert len(rows) == 400 and all(row["margin"] >= 0 for row in rows)
    asked = load_pairs(source, load_tokenizer(sides[0]), (16, 33), "error")
    assert [row["prompt_ids"] for row in rows] == [pair["prompt"] for pair in asked[:400]]
    write_jsonl(pairs / "train.jsonl", rows * 2)
    stages.classify(str(pairs), str(setup), sides, str(tmp_path / "classified"))
    found = json.loads((tmp_path / "classified/result.json").read_text())
    assert found["pairs"][-1] == 800 and found["accuracy"]["proxy"] == [1.0] * 10
    assert found["accuracy"]["online policy"] == [0.5] * 10  # SFT itself: every h is 0
    stages.deeper(sides[0], 3, str(tmp_path / "deeper"))
    (one, _), (other, _) = (load_policy(str(x), 9) for x in (sides[0], tmp_path / "deeper"))
    ids = torch.arange(9)[None]
    assert torch.equal(one(ids).logits, other(ids).logits)
    assert len(other.model.layers) == 3 * len(one.model.layers)
