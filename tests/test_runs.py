"""What a run leaves behind, and what an evaluation measures."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
import ipo_offline
from common import load_evaluation, load_tokenizer
from tests.conftest import (
    REPO,
    SCRIPTS,
    SHORT,
    call,
    call_apart,
    read_jsonl,
    write_jsonl,
)

KEYS = "step loss rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen"
KEYS = f"{KEYS} logps/rejected ties learning_rate grad_norm".split()


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_run_leaves_behind(script, setup, runs):
    folder = runs[script]
    names = "args.json evals.jsonl metrics.jsonl policy responses tandem timings.jsonl .lock"
    assert {path.name for path in folder.iterdir()} == set(names.split())
    args = json.loads((folder / "args.json").read_text())
    assert args["script"] == script and args["steps"] == 3 and args["torch"] == torch.__version__
    logs = "metrics", "evals", "timings"
    metrics, evals, timings = (read_jsonl(folder / f"{name}.jsonl") for name in logs)
    assert [row["step"] for row in metrics] == [row["step"] for row in timings] == [0, 1, 2]
    first = {"ipo": 1 / (4 * args["beta"] ** 2), "dpo": math.log(2), "slic": 1.0}
    first["bo2"] = -metrics[0]["logps/chosen"]
    if script != "rloo_online":  # whose first loss only its pairs tell: tests/test_adds_up.py
        assert metrics[0]["loss"] == pytest.approx(first[script.split("_")[0]], rel=1e-7)
    assert metrics[0]["rewards/margins"] == 0 and metrics[0]["rewards/accuracies"] == 0.5
    assert metrics[1]["loss"] != metrics[0]["loss"] and metrics[0]["grad_norm"] > 0
    assert list(metrics[0]) == KEYS
    assert list(timings[0]) == ["step", "seconds", "peak_memory_bytes"]
    assert [row["step"] for row in evals] == [0, 2, 3] and evals[-1]["kl"] > 0
    assert evals[0] == read_jsonl(runs["ipo_offline"] / "evals.jsonl")[0]  # all begin alike
    assert evals[0]["kl"] == evals[0]["chosen_logratio"] == evals[0]["rejected_logratio"] == 0
    assert evals[0]["accuracy"] == 0.5 and evals[0]["baseline"] == "baseline"
    for key in ("win_rate", "win_rate_heldout", "proxy_win_rate"):
        assert 0 <= evals[0][key] <= 1 and evals[0][f"{key}_stderr"] >= 0
    assert len(read_jsonl(folder / "responses" / "3.jsonl")) == 16  # 8 to training prompts
    events = EventAccumulator(str(folder / "tandem")).Reload()
    told = {event.step: event.value for event in events.Scalars("metrics/loss")}
    assert told == pytest.approx({row["step"]: row["loss"] for row in metrics}, rel=1e-6)
    # the policy that it wrote loads, and is no longer SFT
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
    before = AutoModelForCausalLM.from_pretrained(setup / "sft").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in policy.items())
    assert AutoTokenizer.from_pretrained(folder / "policy").eos_token == "<eos>"


@pytest.mark.parametrize("script", ["ipo_offline", "dpo_online", "ipo_hybrid"])
def test_equal_runs_are_equal_to_the_byte(script, setup, runs, tmp_path):
    """Neither more evaluations nor more steps change a step that both have. --eval-every and
    --eval-at say when a run evaluates, and it does so at both ends, and says what it found."""
    words = ["--eval-every", 4, "--eval-at", 2, 3, "--steps", 5, "--save-policies"]
    done = call(f"{script}.py", "--setup", setup, *SHORT, *words, "--out", tmp_path)
    for name in ("metrics", "evals", "responses/0", "responses/2", "responses/3"):
        kept, again = (folder / f"{name}.jsonl" for folder in (runs[script], tmp_path))
        assert again.read_text().startswith(kept.read_text())
    evals = read_jsonl(tmp_path / "evals.jsonl")
    assert [row["step"] for row in evals] == [0, 2, 3, 4, 5]
    told = "step {step}: KL {kl:.2f} ± {kl_stderr:.2f} nats, win rate {win_rate:.3f} ± "
    told += "{win_rate_stderr:.3f}, by the proxy {proxy_win_rate:.3f} ± "
    told += "{proxy_win_rate_stderr:.3f}, accuracy {accuracy:.3f}, "
    told += "{response_length:.1f} tokens a response"
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert lines == [told.format(**row) for row in evals]
    assert {path.name for path in (tmp_path / "policies").iterdir()} == set("02345")
    names = "policies/5/model.safetensors", "policy/model.safetensors"
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1


def test_copied_into_an_empty_folder(setup, tmp_path):
    """A script with common.py alone. Without a baseline the reference's own samples are it, of
    another noise than the evaluation's; without golden there is no win rate."""
    for name in ("dpo_online.py", "common.py"):
        shutil.copy(REPO / name, tmp_path)
    words = ["--model", setup / "sft", "--dataset", setup / "d_golden" / "train.jsonl", *SHORT]
    words += ["--proxy", setup / "proxy"]
    done = call_apart("dpo_online.py", *words, "--golden", setup / "golden", cwd=tmp_path)
    assert "no --baseline: win rates are against SFT's own samples, 8 prompts" in done.stdout
    run = tmp_path / "runs" / "sft" / "dpo_online__1"
    first, *_ = read_jsonl(run / "evals.jsonl")
    assert first["baseline"] == "sft" and first["win_rate_heldout"] is None
    margins = [row["win_rate_margin"] for row in read_jsonl(run / "responses" / "0.jsonl")]
    assert len(margins) == 8 and sum(m == 0 for m in margins) < 4
    done = call("dpo_online.py", *words, "--out", tmp_path / "own")
    row, *_ = read_jsonl(tmp_path / "own" / "evals.jsonl")
    assert row["win_rate"] is None and row["proxy_win_rate"] == first["proxy_win_rate"]
    assert re.search("step 0: KL 0.00 ± 0.00 nats, by the proxy .*, accuracy 0.500", done.stdout)


def test_an_online_script_needs_prompts_alone(setup, runs, tmp_path):
    """The same run to the byte as on the pairs; without a setup no pairs are there to measure the
    accuracy on."""
    rows = [{"prompt": row["prompt"]} for row in read_jsonl(setup / "d_golden" / "train.jsonl")]
    data = [*SHORT, "--dataset", write_jsonl(tmp_path / "prompts.jsonl", rows)]
    call("ipo_online.py", "--setup", setup, *data, "--out", tmp_path / "run")
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (runs["ipo_online"] / name).read_bytes()
    words = [*data, "--model", setup / "sft", "--proxy", setup / "proxy"]
    call("ipo_online.py", *words, "--golden", setup / "golden", "--out", tmp_path / "own")
    last = read_jsonl(tmp_path / "own" / "evals.jsonl")[-1]
    assert last["accuracy"] is last["chosen_logratio"] is None and 0 <= last["win_rate"] <= 1
    done = call("ipo_hybrid.py", "--setup", setup, *data, "--out", tmp_path / "hybrid", code=1)
    assert "there must be columns chosen and rejected, there are prompt" in done.stderr


def test_an_evaluation_is_the_setups_whatever_the_training_data(setup, tmp_path):
    """--dataset is for training alone. Without a baseline the first distinct prompts are asked."""
    rows = read_jsonl(setup / "d_golden" / "train.jsonl")[-5:]
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    tokenizer, seen = load_tokenizer(str(setup / "sft")), []
    for data in map(str, (setup / "d_golden", other)):
        args = ipo_offline.Args(setup=str(setup), dataset=data, baseline=str(setup / "baseline"))
        pairs = common.load_pairs(data, tokenizer, (16, 33), "error")
        seen.append(load_evaluation(replace(args, eval_prompts=8), tokenizer, pairs, None, "cpu"))
    assert seen[0] == seen[1] and len(seen[0].pairs) == seen[0].train_count == 8
    assert len(seen[0].prompts) == len(seen[0].baseline_responses) == 16
    pairs = [{"text": text, "prompt": [0]} for text in ("May", "June", "July", "May")]
    evaluation = load_evaluation(ipo_offline.Args(eval_prompts=2), tokenizer, pairs, None, "cpu")
    assert evaluation.texts == ["May", "June"] and evaluation.train_count == 2


def test_wandb_knows_a_run_by_one_id(setup, tmp_path, monkeypatch):
    """A stand-in for it: a run keeps its id whenever it continues, another in its place has its
    own, and each has an end."""
    wandb, told = ModuleType("wandb"), []
    wandb.__spec__ = ModuleSpec("wandb", None)
    run = SimpleNamespace(log=lambda *values, **names: None, finish=lambda: told.append("finished"))
    wandb.init = lambda **names: told.append(names) or run
    known = [*tracking.get_available_trackers(), LoggerType.WANDB]
    monkeypatch.setattr(tracking, "_available_trackers", known)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    words = ["--setup", setup, *SHORT, "--wandb", "--resume", "--out", tmp_path / "run"]
    for left in ("policy", ".", None):
        call("ipo_offline.py", *words)
        left and shutil.rmtree(tmp_path / "run" / left)
    began, finished, again, _, other, _ = told
    assert finished == "finished" and began["id"] == again["id"] != other["id"]
    assert began["resume"] == "allow" and began["name"] == str(tmp_path / "run")
    assert began["config"]["steps"] == 3


def test_a_run_says_whether_the_code_was_edited(tmp_path, monkeypatch):
    """The git revision of the code, with -dirty where a file is not as it is there."""
    shutil.copy(REPO / "common.py", tmp_path)
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(common, "__file__", str(tmp_path / "common.py"))
    clean = common.git_revision()
    (tmp_path / "notes.txt").write_text("no code")
    assert re.fullmatch("[0-9a-f]{40}", clean) and common.git_revision() == clean
    (tmp_path / "common.py").write_text("# edited")
    assert common.git_revision() == f"{clean}-dirty"
