"""The board, and the page that tells a reader how to put a loss of their own on it."""

import json
import math
import re
import runpy

import pytest
import torch
import tyro

from paper import board, runs, statistics, swept
from paper.runs import Job
from tests.conftest import REPO, call, read_jsonl

PAGE = (REPO / "docs/your-loss.md").read_text()
STUB = "class Args:\n" + "".join(f"    {name}: int = 0\n" for name in sorted(board.FLAGS))


@pytest.fixture
def place(setup, tmp_path, monkeypatch):
    """Runs of two steps on one seed of the miniature setup, in folders of their own."""
    reviews = Job(setup.name, (), keeps=("proxy", "baseline"), home=setup.parent)
    monkeypatch.setattr(swept, "reviews", lambda seed: reviews)
    monkeypatch.setattr(board, "SEEDS", (41,))
    monkeypatch.setattr(board, "SHORT", 2)
    monkeypatch.setattr(board, "WORK", tmp_path / "board")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    return tmp_path


def follow(page: str) -> str:
    """ipo_online.py with the changes that the page shows."""
    text = (REPO / "ipo_online.py").read_text()
    for change in re.search(r"```diff\n(.+?)```", page, re.S)[1].split("\n\n"):
        lines = change.splitlines()
        old, new = ("".join(x[1:] + "\n" for x in lines if x[0] == sign) for sign in "-+")
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_page_is_right_to_the_letter(place, capsys, monkeypatch):
    (path := place / "mine_online.py").write_text(follow(PAGE))
    words = re.search(r"python -m paper board mine_online.py (.+)", PAGE)[1].split()
    args = tyro.cli(board.Args, args=[str(path), *words[:-1]])  # one beta is enough
    board.main(args)
    told = capsys.readouterr().out
    assert "0 of 1 runs are there" in told and "not made yet: ipo_online, dpo_online" in told
    row = re.search(r"^mine_online.py +(0\.\d{3} \(one seed\) +){3}\d+\.\d\d$", told, re.M)[0]
    (metrics,) = board.WORK.glob("*/*/41__mine_online__beta=0.25/metrics.jsonl")
    stated = re.search(r"log 2 =\s(\d\.\d{6})", PAGE)[1]
    assert f"{read_jsonl(metrics)[0]['loss']:.6f}" == stated == f"{math.log(2):.6f}"
    h = torch.tensor([2.0, math.log(9) / 0.5, -1.0], requires_grad=True)
    losses = runpy.run_path(str(path))["preference_loss"](h, 0, 0, 0, 0.5)
    shares = 1 / (1 + (-0.5 * h).exp())
    assert torch.allclose(losses, -0.9 * shares.log() - 0.1 * (1 - shares).log())
    losses.sum().backward()
    assert h.grad[0] < 0 and h.grad[1] == pytest.approx(0, abs=1e-6)

    monkeypatch.setattr(runs, "start", lambda job: pytest.fail("made again"))
    board.main(args)
    assert re.search(f"(?ms)^1 of 1 runs.+^{re.escape(row)}$", capsys.readouterr().out)
    path.write_text(path.read_text() + "# edited\n")
    with pytest.raises(pytest.fail.Exception, match="made again"):
        board.main(args)


def test_the_page_shows_the_kept_results():
    made = statistics.Report("board", statistics.gather(board.arms, board.SEEDS), REPO)
    page = " ".join(PAGE.split())
    assert all(" ".join(row) in page for row in board.rows(made, "golden")[1:])
    assert " ".join(board.rows(made, "truth")[1]) in page


def test_a_row_by_hand(place, monkeypatch):
    monkeypatch.setattr(board, "SEEDS", (41, 42, 43))
    for seed in board.SEEDS:
        for i, job in enumerate(board.arms(seed)["dpo_online"]):  # two settings
            points = [(0, [0.1, 0.1]), (0.9, [0.3 - i / 10, 0.2 + i / 5])]
            points += [(3, [seed / 100, seed / 100])] * i
            rows = [dict(zip(("kl", "golden"), point)) for point in points]
            found = {"evals": rows, "seconds_a_step": 0.1 + i / 10}
            job.result.parent.mkdir(parents=True, exist_ok=True)
            job.result.write_text(json.dumps(found))
    made = statistics.Report("board", statistics.gather(board.arms, board.SEEDS), place)
    head, row = board.rows(made, "golden")
    half = 4.303 * 0.01 / math.sqrt(3)  # at 4 nats: 0.41, 0.42, 0.43
    near = "0.200 [0.200, 0.200]"  # 0.3 and 0.4 are chosen, each has 0.2 on the other half
    far = f"0.420 [{0.42 - half:.3f}, {0.42 + half:.3f}]"
    assert row == ["dpo_online", near, near, far, "0.15"] and len(head) == len(row)


REFUSED = {
    "x = (": "cannot be read as a Python file",
    "x = 1": "must be NAME.py with a class Args",
    STUB.replace("eval_at", "other"): "its Args lack beta, eval_at, which the board passes",
    STUB: "its Args lack beta, which the board passes",
    f"{STUB}    beta: int = 1\n    gamma: float\n": "have no default for gamma",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_sibling_is_refused(text, place):
    words = "-m", "paper", "board", (path := place / "mine.py"), "--beta", 0.5
    assert "No such file" in call(*words, code=1).stderr
    path.write_text(text)
    (line,) = call(*words, code=1).stderr.splitlines()
    assert REFUSED[text] in line and list(place.iterdir()) == [path]


def test_a_run_that_fails_says_why(place, capsys):
    end = "print('5%|', end='\\r')\nraise SystemExit('error: the loss is nan')\n"
    (path := place / "mine.py").write_text(STUB + end)
    with pytest.raises(SystemExit, match="1 jobs failed"):
        board.main(board.Args(str(path)))
    assert "1: error: the loss is nan (see " + str(board.WORK) in capsys.readouterr().out
