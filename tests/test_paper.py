"""The frontier: what is read off runs, and the command line."""

import json
import re
import shutil
from functools import partial

from common import sha256, wins
from paper.frontier import Run, ground_truth_scores
from tests.conftest import call, read_jsonl

frontier = partial(call, "-m", "paper", "frontier")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_frontier_draws_and_prints(runs, tmp_path):
    first, second = (shutil.copytree(runs["ipo_online"], tmp_path / name) for name in "ab")
    rows, out = read_jsonl(first / "evals.jsonl"), tmp_path / "pictures" / "frontier"
    write(first / "evals.jsonl", [rows[0], rows[1] | {"win_rate": 0.9876, "kl": 2.345}, *rows[2:]])
    with open(second / "evals.jsonl", "a") as file:
        file.write('{"step": 4, "kl": ')  # of a run that still trains
    folders = [*runs.values(), first, second]
    done = frontier(*folders, "--out", f"{out}.png", "--title", "A title").stdout
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "0.988 at 2.35 nats" in done and "have not one setup" not in done
    told = {"A title", "win rate against the baseline policy", *(folder.name for folder in folders)}
    assert told <= set(re.findall(">(.*?)<", out.with_suffix(".svg").read_text()))
    for folder in folders[:-1]:
        last = read_jsonl(folder / "evals.jsonl")[-1]
        told = f"{last['kl']:.2f} ± {last['kl_stderr']:.2f} +{last['win_rate']:.3f} ±"
        assert re.search(f"^{folder.name} .* {told}", done, re.M)


def test_the_ground_truth_score_prefers_praise(tmp_path):
    staff, row = "Hotel in May, staff and view:", {"split": "train", "finished": True}
    kind, rude = (row | {"response": f" The staff was {word}."} for word in ("friendly", "rude"))
    baseline = {"baseline": str(tmp_path / "baseline"), "baseline_sha256": "of another"}
    run, _ = Run("run", tmp_path, baseline, [{"step": 3}], ""), (tmp_path / "baseline").mkdir()
    (tmp_path / "responses").mkdir()
    cases = (staff, rude, [1, 0.5]), (staff, kind, [0.5, 0]), ("Hello", rude, [])
    for prompt, stored, won in cases:
        rows = [answer | {"prompt": prompt} for answer in (kind, rude, rude | {"split": "test"})]
        write(tmp_path / "responses" / "3.jsonl", rows)
        write(tmp_path / "baseline" / "responses.jsonl", [stored | {"prompt": prompt}] * 2)
        assert not ground_truth_scores(run, 3)[0]  # the run has met another baseline
        run.args["baseline_sha256"] = sha256(run.args["baseline"])
        prompts, ours, baselines = ground_truth_scores(run, 3)
        assert prompts == [prompt] * len(won) and wins(ours - baselines).tolist() == won


def test_the_command_line(runs, tmp_path):
    assert call("-m", "paper").stdout == call("-m", "paper", "--help").stdout
    assert "no such command" in call("-m", "paper", "nothing", code=1).stderr
    assert "not the folder of a run" in frontier(tmp_path, code=1).stderr
    begun = shutil.copytree(runs["ipo_online"], tmp_path / "begun")
    for change, message in (({"kl": 0.0}, "not moved from SFT"), ({"win_rate": None}, "--golden")):
        write(begun / "evals.jsonl", [read_jsonl(begun / "evals.jsonl")[0] | change])
        assert message in frontier(begun, "--out", tmp_path / "none", code=1).stderr
    assert not list(tmp_path.glob("none*"))
