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
from paper import optimum, page, runs, stages, statistics
from paper.runs import Job
from tests.conftest import SHORT, read_jsonl


def result(*points):
    """A result of evaluations (KL, [golden on either half], [ground truth on either half])."""
    rows = [dict(zip(("kl", "golden", "truth"), point)) for point in points]
    told = {"responses": [" A review."], "reach": 0.1}
    told |= {"chosen_logratio": -1.0, "rejected_logratio": -3.0}
    for i, row in enumerate(rows):
        row |= told | {"win_rate": row["golden"][0], "accuracy": row["golden"][1]}
        row |= {"agreement": 0.9, "step": statistics.SHORT - 1 + i}
    return {"evals": rows, "revision": "one", "prompts": [4, 4], "seconds_a_step": 0.1}


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
    torch.manual_seed(0)
    values = [
        [(kl, [rate, rate + 0.001 * i]) for i, (kl, rate) in enumerate(torch.rand(20, 2).tolist())]
        for _ in range(8)
    ]
    some = [result(*((12 * kl, rates, rates) for kl, rates in run)) for run in values]
    same = [
        {"evals": [row | {"golden": row["golden"][:1] * 2} for row in r["evals"]]} for r in some
    ]
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


def tabular(loss, count, steps=2000):
    """log pi - log mu of the loss's minimiser over pairs from mu, uniform; the last is the best."""
    logits = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=steps, tolerance_change=0, tolerance_grad=1e-9)
    better, worse = torch.tril_indices(count, count, -1)

    def closure():
        optimizer.zero_grad()
        value = loss(logits[better] - logits[worse]).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().log_softmax(0) + math.log(count), better, worse


def test_the_optima_by_brute_force():
    count, beta = 200, 0.3
    g, better, worse = tabular(lambda h: (h - 1 / (2 * beta)) ** 2, count)
    found = (g.exp() * g).mean().item(), (g[better] - g[worse]).mean().item()
    assert found == pytest.approx(optimum.offline_ipo(beta), rel=0.02)

    g = torch.zeros(count, dtype=torch.float64)
    for _ in range(500):  # half a step to the optimum for pairs from pi
        pi = (g - math.log(count)).exp()
        beaten = pi.cumsum(0) - pi / 2
        g = (g + beaten / beta) / 2
        g = g.log_softmax(0) + math.log(count)
    found = (g.exp() * g).mean().item(), (g[better] - g[worse]).mean().item()
    assert found == pytest.approx(optimum.online_ipo(beta), rel=0.02)
    dpo = [
        tabular(lambda h: torch.nn.functional.softplus(-h), 5, n)[0].diff().min() for n in (5, 50)
    ]
    assert dpo[1] > dpo[0] + 2  # it grows as long as it is trained
    kls = [round(optimum.offline_ipo(b)[0], 2) for b in (0.1, 0.05, 0.02)]
    assert kls == [1.30, 2.00, 2.91]
    assert [round(optimum.online_ipo(b)[0], 2) for b in (0.1, 0.05, 0.02)] == [2.70, 7.00, 21.09]


def test_the_verdict_on_a_claim():
    """The sign of an interval that excludes 0 decides; else there is none, or no difference. There
    is none before all seeds are there."""
    made = statistics.Report("question", {}, Path(), 3)
    ahead, level, one = {1: 0.10, 2: 0.11, 3: 0.12}, {1: -0.1, 2: 0, 3: 0.1}, {1: 0.2}
    asked = {"yes": (ahead, 1), "no": (ahead, -1), "undecided": (level, 1)}
    asked |= {"consistent": (level, 0), "not decided yet: 1 of 3 seeds": (one, 1)}
    asked |= {"not made yet": ({}, 1)}
    for effect, sign in (*asked.values(), (ahead, 0)):
        made.claim("1", "text", sign, effect, level)
    assert [row[-1] for row in made.claims] == [*asked, "no"]
    half = 4.303 * 0.01 / math.sqrt(3)
    cell = f"+0.110 [{0.11 - half:+.3f}, {0.11 + half:+.3f}] *"
    assert made.claims[0][2:5] == [cell, "+0.000 [-0.248, +0.248]", 3]
    assert made.numbers[2] == ("question", "text", 3, "effect, golden", "", "0.12")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "WORK", tmp_path / "work")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    return tmp_path


def test_a_campaign_continues(setup, place):
    words = ["ipo_online.py", "--setup", setup, *SHORT, "--steps", 12, "--save-pairs"]
    job = Job("run", tuple(map(str, words)), "question", keeps=("online_pairs",), steps=12)
    assert not job.done and runs.plan([job]) == [job]
    process = runs.start(job)
    while not list(job.folder.glob("checkpoint/[0-9]*")):
        assert process.poll() is None
    process.kill()
    process.wait()
    reader = Job("reader", ("-c", "raise SystemExit(3)"), needs=(job,))
    other = replace(job, name="whole", keeps=())
    assert runs.start(other).wait() == 0  # in the same environment
    runs.keep(other)
    with pytest.raises(SystemExit, match="1 jobs failed, 0 wait"):
        runs.make([reader, other])
    assert job.done and job.there and other.done and runs.plan([job, other]) == []
    first, second = (json.loads(one.result.read_text()) for one in (job, other))
    assert first["evals"] == second["evals"] and first["revision"] == runs.revision()
    assert str(place) not in job.result.read_text().replace(first["command"], "")
    assert len(read_jsonl(job.folder / "online_pairs/train.jsonl")) == 48
    assert not other.folder.exists()
    row = first["evals"][-1]
    assert row["step"] == 12 and sum(first["prompts"]) == 8
    assert sum(row["golden"]) / 2 == pytest.approx(row["win_rate"], abs=1e-4)
    assert len(row["responses"]) == 3 and 0 <= row["reach"] <= 1 and len(row["truth"]) == 2


def test_the_estimate(place):
    """The experiments take at most 20 core-hours, at 1,600 steps; the board is no experiment."""
    job = runs.run("question", "run", "ipo_online", Job("setup", ()), 1, 1000)
    assert job.seconds == pytest.approx(8 + 14 * 2.2 + 180)
    asked = {name: statistics.flat(q.arms, q.seeds) for name, q in page.QUESTIONS.items()}
    assert sum(job.seconds for job in runs.plan(asked.pop("board"))) < 1.6 * 3600
    jobs = runs.plan([job for some in asked.values() for job in some])
    assert len({job.name for job in jobs}) == len(jobs)
    assert sum(job.seconds for job in jobs) < 20 * 3600
    assert max(job.seconds for job in jobs) < 0.3 * 3600  # what an interruption can delay


def test_every_command_parses():
    jobs = [job for q in page.QUESTIONS.values() for job in statistics.flat(q.arms, q.seeds[:1])]
    for job in {" ".join(w for w in job.words if w[0] == "-"): job for job in jobs}.values():
        if job.steps:
            script = importlib.import_module(job.words[0].removesuffix(".py"))
            tyro.cli(script.Args, args=job.words[1:])


def test_the_page(place, capsys):
    """Without results it says so; with all of them it has every number, by hand for one."""
    page.main(page.Args(str(place / "findings.md")))
    text = (place / "findings.md").read_text()
    assert "not made yet" in text and "Not complete: 0 of 9 runs" in text
    accuracy = {who: [0.5 + i / 20 for i in range(10)] for who in ("proxy", "online policy")}
    for question in page.QUESTIONS.values():
        for seed in question.seeds:
            for arm, jobs in question.arms(seed).items():
                for job in jobs:
                    found = OTHER if "online" in arm else ONE
                    found = {"accuracy": accuracy, "revision": "two"} if not job.steps else found
                    job.result.parent.mkdir(parents=True, exist_ok=True)
                    job.result.write_text(json.dumps(found))
    page.main(page.Args(str(place / "findings.md")))
    text, told = (place / "findings.md").read_text(), capsys.readouterr().out
    assert "<!--" not in text and "made by 2 versions" in told and len(text.splitlines()) <= 350
    cells = "0.325 [0.325, 0.325] | DPO, offline | 0.500 [0.500, 0.500] |"
    assert f"| DPO, online | golden | {cells}" in text and "not made yet" not in text
    assert "Not complete" not in text
    assert "| 6 | the proxy's accuracy falls: last minus first fifth | +0.400" in text
    assert "| 1 | DPO: online is ahead | -0.175 [-0.175, -0.175] * |" in text
    cells = "3 | 0.250 [0.250, 0.250] | -0.075 [-0.075, -0.075] * |"
    assert f"| offline, D_golden | online | {cells}" in text
    assert "| 4 | its pairs, shuffled, are no better than D_golden | " in text
    for picture in (place / "pictures").iterdir():
        assert picture.read_bytes()[16:20] == (1200).to_bytes(4, "big")
    numbers = (place / "findings.csv").read_text().splitlines()
    assert 'frontier,"DPO, online",11,"win rate, golden",4,0.325' in numbers
    assert 'frontier,"IPO, online",11,"win rate, golden",12,0.85' in numbers
    assert 'coverage,online,11,"win rate, golden",12,0.325' in numbers  # the same, until step 400


def test_stages(setup, tmp_path):
    """Pairs of two policies have golden's labels; golden classifies them as it has labelled them;
    a deeper model is the same at first."""
    source, pairs = str(setup / "d_golden"), tmp_path / "pairs"
    sides = str(setup / "sft"), str(setup / "baseline")
    stages.pairs(sides, str(setup / "golden"), source, 400, 1, str(pairs))
    rows = read_jsonl(pairs / "train.jsonl")
    assert len(rows) == 400 and all(row["margin"] >= 0 for row in rows)
    asked = [
        row["prompt"] for row in load_pairs(source, load_tokenizer(sides[0]), (16, 33), "error")
    ]
    assert [row["prompt_ids"] for row in rows] == asked[:400]
    (pairs / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    stages.classify(str(pairs), str(setup), sides, str(tmp_path / "classified"))
    found = json.loads((tmp_path / "classified/result.json").read_text())
    assert found["pairs"][-1] == 800 and found["accuracy"]["proxy"] == [1.0] * 10
    assert found["accuracy"]["online policy"] == [0.5] * 10  # SFT itself: every h is 0
    stages.deeper(sides[0], 3, str(tmp_path / "deeper"))
    (one, _), (other, _) = (load_policy(str(x), 9) for x in (sides[0], tmp_path / "deeper"))
    ids = torch.arange(9)[None]
    assert torch.equal(one(ids).logits, other(ids).logits)
    assert len(other.model.layers) == 3 * len(one.model.layers)
