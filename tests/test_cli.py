"""The command lines: their arguments, what is refused and how, and what prepare does."""

import dataclasses
import importlib
import itertools
import json
import re
import shutil
import subprocess
from unittest.mock import Mock

import pytest
import torch

import common
import ipo_offline
from common import load_evaluation, load_pairs, load_policy, load_tokenizer
from prepare.preference_model import train_preference_model
from prepare.sft import train_sft
from tests.conftest import (
    MINIATURE,
    REPO,
    SCRIPTS,
    SHORT,
    call,
    call_apart,
    letter_tokenizer,
    read_jsonl,
    stage,
    tiny_model,
)

COMMANDS = [f"{script}.py" for script in SCRIPTS] + ["-m prepare", "-m paper frontier"]
PREPARE = ["-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out"]


def bytes_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    text = call(*command.split(), "--help").stdout
    program = f"python {command}" if command.startswith("-m") else f"{REPO}/{command}"
    assert text.startswith(f"usage: {program} ") and "--out" in text


def test_arguments_are_spelled_as_promised():
    shared = "setup model dataset proxy golden baseline on-bad-row out resume seed mixed-precision"
    shared += " steps batch-size learning-rate beta max-grad-norm micro-batch-size"
    shared += " gradient-checkpointing max-prompt-tokens max-response-tokens eval-every eval-at"
    shared += " eval-prompts kl-prompts eval-batch-size save-policies wandb fast"
    for script in SCRIPTS:
        mode = script.split("_")[1]
        own = {"offline": "shuffle", "online": "sync-every save-pairs"}
        own["hybrid"] = f"{own['online']} offline-share"
        own["online"] += " scale" * (script == "rloo_online")
        fields = dataclasses.fields(importlib.import_module(script).Args)
        names = [field.name.replace("_", "-") for field in fields]
        assert sorted(names) == sorted(f"{shared} {own[mode]}".split())


RANGE = "must be a finite number, above 0"
WRONG = [
    ("--steps 0", f"--steps 0: {RANGE}"),
    ("--batch-size 401", "--batch-size 401: the data have only 400 usable rows; lower it"),
    ("--eval-at 5 0", f"--eval-at 0: {RANGE}"),
    ("--beta nan", f"--beta nan: {RANGE}"),
    ("--beta -0.1", f"--beta -0.1: {RANGE}"),
    ("--max-grad-norm -1", "--max-grad-norm -1.0: must be a finite number, 0 or more"),
    ("--shuffle 0", f"--shuffle 0: {RANGE}"),
    ("--setup nowhere", "--setup nowhere: no such folder; `python -m prepare --out nowhere`"),
    ("--setup HALF", "--model is missing: pass it, or a --setup that has sft/"),
    (
        "--dataset nowhere.jsonl",
        "nowhere.jsonl: cannot be read as train data (there is no such file)",
    ),
    ("--dataset SETUP", "SETUP: is a setup; name the pairs in it, for example SETUP/d_golden"),
    ("--dataset SETUP/sft", "SETUP/sft: cannot be read as train data ("),
    ("--baseline OTHER", "OTHER/responses.jsonl: row 0: split must be train or test"),
    ("--model SETUP", "SETUP: is a setup; name a model in it, for example SETUP/sft"),
    ("--model ADAPTER", "ADAPTER: has an adapter; merge it into its model"),
    ("--model nowhere", "nowhere: no tokenizer can be loaded from it ("),
    ("--model ./nowhere", "./nowhere: there is no such folder, so no tokenizer"),
    ("--model SETUP/proxy", "SETUP/proxy: is a preference model, no causal language model"),
    ("--model OTHER", "SETUP/d_golden: row 0: prompt has a word that the tokenizer does not know"),
    ("--golden SETUP/sft", "SETUP/sft: is no preference model: it has no weights for score.weight"),
    ("--max-prompt-tokens 120", "SETUP/sft: reads at most 128 tokens, 153 may be asked of it"),
    ("--max-response-tokens 3", "SETUP/d_golden: row 0: chosen has "),
    ("--wandb", "--wandb needs "),
    ("--out SETUP", "--out SETUP: holds something that is no run; name another folder"),
    ("--out RUN/args.json", "--out RUN/args.json: holds something that is no run"),
    ("--out RUN", "--out RUN: holds a run; name another folder, or continue it with --resume"),
]


@pytest.mark.parametrize("words, message", WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_argument_ends_in_one_line(words, message, setup, runs, tmp_path):
    """It leaves nothing behind, and what is there as it is."""
    tiny_model().float().save_pretrained(tmp_path / "other")
    letter_tokenizer().save_pretrained(tmp_path / "other")
    row = {"prompt": "Hotel", "response": "b", "finished": True}
    (tmp_path / "other" / "responses.jsonl").write_text(json.dumps(row))
    (tmp_path / "half" / "d_golden").mkdir(parents=True)
    letter_tokenizer().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    places = {"SETUP": setup, "RUN": runs["ipo_offline"]}
    places |= {name.upper(): tmp_path / name for name in ("other", "half", "adapter")}
    for name, place in places.items():
        words, message = words.replace(name, str(place)), message.replace(name, str(place))
    before = bytes_of(runs["ipo_offline"])
    given = ["--setup", setup, "--out", tmp_path / "run"]
    done = call("ipo_offline.py", *given, *words.split(), code=1)
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not done.stdout and not (tmp_path / "run").exists()
    assert bytes_of(runs["ipo_offline"]) == before
    assert "setps" in call("ipo_offline.py", *given, "--setps", 3, code=2).stderr


BASELINES = [
    ({"split": "validation"}, "row 1: split must be train or test, response a text, finished true"),
    ({"finished": "yes"}, "row 1: split must be train or test"),
    ({"prompt": 3}, "row 1: prompt is blank, or no text"),
    ({"response": ["a"]}, "row 1: split must be train or test"),
    ({"prompt": "Camera in Smarch:"}, "row 1: prompt has a word that the tokenizer does not know"),
    (
        {"prompt": "Camera in May" + ", screen and" * 9},
        r"row 1: prompt has \d+ tokens, --max-prompt-tokens is 16",
    ),
    ({"split": "test"}, "has no row of the split train; win rate and KL need its prompts"),
]


@pytest.mark.parametrize("change, message", BASELINES, ids=str)
def test_a_baseline_that_cannot_be_used_is_named(change, message, setup, tmp_path):
    """Of the stored responses nothing is left out or cut silently either."""
    rows = read_jsonl(setup / "baseline" / "responses.jsonl")[:4]
    only = range(4) if change == {"split": "test"} else [1]
    rows = [row | (change if i in only else {}) for i, row in enumerate(rows)]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ipo_offline.Args(setup=str(setup), baseline=str(tmp_path), golden=None, proxy=None)
    tokenizer = load_tokenizer(str(setup / "sft"))
    pairs = load_pairs(str(setup / "d_golden"), tokenizer, (16, 33), "error")
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}/responses.jsonl: {message}"):
        load_evaluation(args, tokenizer, pairs, None, "cpu")


def test_a_run_that_began_while_models_were_loaded_is_not_written_over(runs, tmp_path):
    """The folder was empty when it was named; it is looked at again once it is claimed."""
    args = ipo_offline.Args(setup="s", model="m", dataset="d", out=str(tmp_path / "run"))
    shutil.copytree(runs["ipo_offline"], args.out)
    before = bytes_of(tmp_path)
    for args.resume, message in ((False, "holds a run; name another"), (True, "model_sha256 was")):
        with pytest.raises(SystemExit, match=f"^error: --out {args.out}: .*{message}"):
            common.begin_run(args, "ipo_offline", [])
        common.LOCKS.pop().release()
    assert bytes_of(tmp_path) == before


def test_resume_means_the_default_folder_too(setup, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ipo_offline.Args(setup=str(setup), resume=True)
    common.check_args(args, "ipo_offline", ("model",))
    assert args.out == f"runs/{setup.name}/ipo_offline__1"


def test_a_loss_that_is_no_number_names_its_step(setup, tmp_path):
    words = ["--setup", setup, *SHORT, "--learning-rate", 1e30, "--out", tmp_path / "run"]
    told = call("ipo_online.py", *words, code=1).stderr
    assert re.search(r"\nerror: step [12]: the .*(nan|inf).*; lower --learning-rate.*\n$", told)


LOWER = "lower --micro-batch-size, --eval-batch-size or a --max-...-tokens$"
ENDS = {
    f"CUDA out of memory: {LOWER}": torch.OutOfMemoryError("CUDA out of memory"),
    "another process of this run has ended; --resume": RuntimeError("[gloo/pair] closed"),
    r"a file could not be read or written \(.*No space left": OSError(28, "No space left"),
    "interrupted; repeat the command to continue, a run.s with --resume": KeyboardInterrupt(),
}


def test_what_no_program_can_prevent_ends_in_one_line():
    with pytest.raises(SystemExit, match=f"^error: .*allocate memory: .*: {LOWER}"):
        common.run_command(torch.empty, 2**50)
    for message, error in ENDS.items():
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            common.run_command(Mock(side_effect=error), None)
    with pytest.raises(RuntimeError, match="illegal memory access"):  # a bug, no lack of memory
        common.run_command(Mock(side_effect=RuntimeError("an illegal memory access")), None)


NO_NETWORK = """
import os, socket
def refuse(*args, **options):
    open(os.environ["TRIED"], "a").write(repr(args))
    raise OSError("the network is cut")
open(os.environ["TRIED"] + " to import", "w")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


def test_nothing_is_fetched_and_a_terminal_may_know_ascii_alone(tmp_path):
    """From the data of the reviews task to a trained policy without a connection, and git."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    cut = {"PYTHONPATH": str(tmp_path), "TRIED": str(tmp_path / "tried"), "HF_HUB_OFFLINE": "0"}
    cut |= {"PYTHONIOENCODING": "ascii", "PATH": ""}
    few = "--sft-steps 2 --golden-steps 2 --proxy-steps 2 --policy-steps 1 --eval-prompts 4".split()
    call_apart("-m", "prepare", "--pairs", 100, *few, "--out", tmp_path / "setup", **cut)
    words = ["--setup", tmp_path / "setup", *SHORT, "--out", tmp_path / "run"]
    done = call_apart("ipo_online.py", *words, **cut)
    assert "0.00 ? 0.00 nats" in done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "args.json").read_text())["git_revision"] is None
    assert (tmp_path / "tried to import").exists() and not (tmp_path / "tried").exists()


def test_a_failing_run_fails_make_demo(tmp_path):
    """The two runs go side by side; make hears of each one's failure."""
    shutil.copy(REPO / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.txt", ".venv/installed"):
        (tmp_path / name).touch()
    for failing in ("ipo_offline.py", "ipo_online.py", "frontier", "none"):
        (tmp_path / "python").write_text(f'#!/bin/sh\ncase "$*" in *{failing}*) exit 1;; esac\n')
        (tmp_path / "python").chmod(0o755)
        done = subprocess.run(["make", "demo", "PY=./python"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 2 * (failing != "none"), done


def test_a_setup_holds_every_role(setup):
    parts = {"d_initial", "sft", "golden", "d_golden", "proxy", "baseline", "prepare.json"}
    parts |= {".lock", "untrained", "untrained_golden", "untrained_small"}
    assert parts == {path.name for path in setup.iterdir()}
    for name in ("sft", "golden", "proxy", "baseline"):
        names = {path.name for path in (setup / name).iterdir()}
        assert {"tokenizer.json", "model.safetensors"} <= names
    train, test = (read_jsonl(setup / "d_golden" / f"{split}.jsonl") for split in ("train", "test"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}


def test_prepare_continues_where_it_stopped(setup, tmp_path):
    """What is there is kept to the byte, what is missing or half made is made."""
    again = shutil.copytree(setup, tmp_path / "again")
    before = bytes_of(again)
    shutil.rmtree(again / "proxy")
    (again / "proxy.partial").mkdir()
    (again / "proxy.partial" / "config.json").write_text("{")
    done = call(*PREPARE, again)
    assert done.stdout.count("there already") == 5 and "proxy: made" in done.stdout
    assert bytes_of(again) == before
    done = call(*PREPARE, again, "--seed", 8, code=1)
    assert "seed was 7, is 8: repeat its own, remove the folder, or name another one" in done.stderr
    (again / "prepare.json").write_text("")
    done = call(*PREPARE, again, code=1)
    assert done.stderr.startswith(f"error: {again}/prepare.json: cannot be read")


def test_prepare_with_a_model_and_data_of_ones_own(setup, tmp_path):
    """The model is its own SFT policy with --sft-steps 0. An argument that is found to be wrong
    once the data are there is named, and the folder too."""
    words = ["--model", setup / "sft", "--dataset", setup / "d_initial" / "train.jsonl"]
    words += ["--out", tmp_path / "own", *MINIATURE, "--sft-steps", 0]
    done = call("-m", "prepare", *words, "--batch-size", 1000, code=1)
    assert "--batch-size 1000: the data have only" in done.stderr
    done = call("-m", "prepare", *words, "--batch-size", 4, code=1)
    assert f"{tmp_path}/own: batch_size was 1000, is 4: repeat its own, remove" in done.stderr
    shutil.rmtree(tmp_path / "own")
    assert "baseline: made" in call("-m", "prepare", *words, "--batch-size", 4).stdout
    own, given = (folder / "sft" / "model.safetensors" for folder in (tmp_path / "own", setup))
    assert own.read_bytes() == given.read_bytes()


def test_prepare_writes_over_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("not a setup")
    done = call("-m", "prepare", "--out", tmp_path, "--pairs", 40, code=1)
    assert f"error: --out {tmp_path}: holds something that is no setup" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    done = call("-m", "prepare", "--out", tmp_path / "few", "--pairs", 9, code=1)
    assert done.stderr.startswith("error: --pairs 9: must be 10 or more")
    for name, value in (("--golden-steps", 0), ("--golden-model", tmp_path / "nowhere")):
        done = call("-m", "prepare", "--out", tmp_path / "new", name, value, code=1)
        told = ("--golden-steps 0: needs --golden-model", f"{tmp_path}/nowhere: there is no such")
        assert done.stderr.startswith(tuple(f"error: {one}" for one in told))
        assert not (tmp_path / "new").exists()


def test_a_stage_that_diverges_is_not_kept(setup, tmp_path):
    rates = {"sft_learning_rate": 1e30, "preference_learning_rate": 1e30}
    words = setup / "untrained", setup / "d_initial", tmp_path / "out"
    with pytest.raises(SystemExit, match="sft: step .: loss .*nan; lower --sft-learning"):
        stage(train_sft, *words, sft_steps=5, **rates)
    with pytest.raises(
        SystemExit, match="out: step .: loss or gradient is no finite number; lower --pref"
    ):
        stage(train_preference_model, *words, 5, 1, **rates)
    assert not (tmp_path / "out").exists()


def test_sft_says_how_likely_the_data_are(setup, tmp_path, capsys):
    """Nats a token of both responses, by hand; a bad row of the test split is left out."""
    rows = read_jsonl(setup / "d_initial" / "train.jsonl")[:6]
    (tmp_path / "data").mkdir()
    splits = {"train": rows[:4], "test": [rows[4], rows[5] | {"chosen": "unheard"}]}
    for split, some in splits.items():
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    words = setup / "sft", tmp_path / "data", tmp_path / "out"
    stage(train_sft, *words, sft_steps=0, on_bad_row="skip")
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "nats_per_token.json").read_text())
    policy, tokenizer = load_policy(str(setup / "sft"), 64)
    for split, some in (("train", rows[:4]), ("test", rows[4:5])):
        total = count = 0
        for row, name in itertools.product(some, ("chosen", "rejected")):
            head, whole = tokenizer([row["prompt"], row["prompt"] + row[name]]).input_ids
            whole += [tokenizer.eos_token_id] * row[f"{name}_finished"]
            logprobs = policy(torch.tensor([whole])).logits[0].log_softmax(-1)
            total -= sum(logprobs[i - 1, whole[i]].item() for i in range(len(head), len(whole)))
            count += len(whole) - len(head)
        assert found[split] == pytest.approx(total / count, rel=1e-5)
        assert f"{split} {found[split]:.3f}" in told
