"""Every command of the README in miniature, as a reader calls it."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
import re
import shutil
import subprocess

import pytest
import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import common
import ipo_offline
import ipo_online
from benchmarks import shapes
from common import load_evaluation, load_pairs, load_policy, load_tokenizer
from prepare import preference_model, reviews, sft
from tests.conftest import (
    MINIATURE,
    REPO,
    SCRIPTS,
    SHARED,
    SHORT,
    call,
    call_apart,
    letter_tokenizer,
    needs_shared,
    read_jsonl,
    tiny_model,
)

COMMANDS = [[f"{script}.py"] for script in SCRIPTS]
COMMANDS += [
    ["-m", "prepare"],
    ["-m", "prepare.reviews"],
    ["-m", "prepare.sft"],
    ["-m", "prepare.pairs"],
]
COMMANDS += [
    ["-m", "prepare.preference_model", "train"],
    ["-m", "prepare.preference_model", "relabel"],
]
COMMANDS += [["-m", "paper", "frontier"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command):
    text = call(*command, "--help").stdout
    assert "usage:" in text and "--out" in text


@pytest.mark.parametrize(
    "command", [["-m", "paper"], ["-m", "prepare.preference_model"]], ids=" ".join
)
def test_help_of_commands_with_parts(command):
    text = call(*command, "--help").stdout
    assert "usage:" in text and all(
        part in text for _, *parts in COMMANDS if parts[:1] == command[1:] for part in parts[1:]
    )


def test_arguments_are_spelled_as_promised():
    common = "setup model dataset golden baseline out seed device steps batch-size learning-rate beta max-grad-norm"
    common += " max-prompt-tokens max-response-tokens eval-every eval-prompts kl-prompts precision on-bad-row"
    common += " save-policies wandb resume eval-batch-size gradient-accumulation-steps gradient-checkpointing compile"
    for script in SCRIPTS:
        own = {
            field.name.replace("_", "-")
            for field in dataclasses.fields(importlib.import_module(script).Args)
        }
        side = {"shuffle"} if script.endswith("offline") else {"proxy", "save-pairs", "sync-every"}
        assert own == set(common.split()) | side | (
            {"offline-share"} if script.endswith("hybrid") else set()
        )


def test_a_start_holds_every_role(setup):
    parts = {"d_initial", "sft", "golden", "d_golden", "proxy", "baseline", "prepare.json"}
    assert parts <= {path.name for path in setup.iterdir()}
    assert not list(setup.glob("*.partial")) and not list(setup.glob("*.run"))
    for name in ("sft", "golden", "proxy", "baseline"):
        assert (setup / name / "tokenizer.json").is_file() and (
            setup / name / "model.safetensors"
        ).is_file()
    train, test = (read_jsonl(setup / "d_golden" / f"{split}.jsonl") for split in ("train", "test"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    stored = read_jsonl(setup / "baseline" / "responses.jsonl")
    for split, rows in (("train", train), ("test", test)):
        prompts = [row["prompt"] for row in stored if row["split"] == split]
        assert len(prompts) == len(set(prompts)) == 12 and set(prompts) <= {
            row["prompt"] for row in rows
        }


def test_prepare_goes_on_where_it_stopped(setup, tmp_path):
    """What is there is kept to the byte, what is missing or half made is made."""
    shutil.copytree(setup, tmp_path / "again")
    before = {path: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "again" / "proxy")
    (tmp_path / "again" / "proxy.partial").mkdir()
    (tmp_path / "again" / "proxy.partial" / "config.json").write_text("{")
    done = call(
        "-m", "prepare", "--out", tmp_path / "again", "--seed", 7, "--pairs", 400, *MINIATURE
    )
    assert done.stdout.count("there already") >= 4 and "proxy: made" in done.stdout
    assert {
        path: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()
    } == before
    refused = call(
        "-m",
        "prepare",
        "--out",
        tmp_path / "again",
        "--seed",
        8,
        "--pairs",
        400,
        *MINIATURE,
        code=1,
    )
    assert "was begun with --seed 7" in refused.stderr


def test_prepare_begins_anew_while_nothing_is_trained(setup, tmp_path):
    """An argument that is found to be wrong once the data are there can be put right."""
    roles = [
        "--model",
        setup / "untrained",
        "--dataset",
        setup / "d_initial" / "train.jsonl",
        "--out",
        tmp_path / "own",
    ]
    done = call("-m", "prepare", *roles, *MINIATURE, "--batch-size", 1000, code=1)
    assert "--batch-size 1000: the data have only" in done.stderr
    done = call("-m", "prepare", *roles, *MINIATURE, "--batch-size", 4)
    assert (
        "was begun with --batch-size 1000; nothing is trained yet, so it begins anew" in done.stdout
    )
    assert "baseline: made" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_run_leaves_behind(script, runs):
    folder = runs[script]
    args = json.loads((folder / "args.json").read_text())
    assert args["script"] == script and args["steps"] == 3 and args["torch"] == torch.__version__
    metrics = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2]
    at_the_start = {
        "ipo": 1 / (4 * args["beta"] ** 2),
        "dpo": math.log(2),
        "slic": 1.0,
        "bo2": -metrics[0]["logps/chosen"],
    }
    at_the_start = at_the_start[script.split("_")[0]]
    assert metrics[0]["loss"] == pytest.approx(at_the_start, rel=1e-7)
    assert metrics[0]["rewards/margins"] == 0 and metrics[0]["rewards/accuracies"] == 0.5
    assert metrics[1]["loss"] != metrics[0]["loss"] and metrics[0]["grad_norm"] > 0
    keys = "step loss rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen logps/rejected ties "
    assert list(metrics[0]) == (keys + "learning_rate grad_norm").split()
    evals = read_jsonl(folder / "evals.jsonl")
    assert [row["step"] for row in evals] == [0, 2, 3]
    assert evals[0]["kl"] == 0 and evals[0]["accuracy"] == 0.5 and evals[-1]["kl"] > 0
    assert (
        evals[0]["chosen_logratio"] == evals[0]["rejected_logratio"] == 0
        and evals[-1]["chosen_logratio"] != 0
    )
    assert evals[0]["baseline"] == "baseline" and len(evals[0]["samples"]) == 3
    for key in ("win_rate", "win_rate_heldout", "proxy_win_rate"):
        assert 0 <= evals[0][key] <= 1 and evals[0][f"{key}_stderr"] >= 0
    assert [sorted(row) for row in read_jsonl(folder / "timings.jsonl")][0][:3] == [
        "peak_memory_bytes",
        "step",
        "time/label",
    ]
    assert len(read_jsonl(folder / "responses" / "3.jsonl")) == 16  # 8 training prompts, 8 held out
    assert list(folder.glob("events.out.tfevents.*"))


def test_both_arms_start_alike(runs):
    """At equal seed: the same prompts in step 0, and an evaluation of the same policy on the same noise."""
    first = [read_jsonl(folder / "evals.jsonl")[0] for folder in runs.values()]
    assert all(row == first[0] for row in first)


def test_the_written_policy_loads_and_differs_from_its_start(setup, runs):
    for folder in runs.values():
        policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
        before = AutoModelForCausalLM.from_pretrained(setup / "sft").state_dict()
        assert AutoTokenizer.from_pretrained(folder / "policy").eos_token == "<eos>"
        assert any(
            not torch.equal(value, before[name]) for name, value in policy.state_dict().items()
        )


@pytest.mark.parametrize("script", ["ipo_offline", "ipo_online", "dpo_offline", "slic_online"])
def test_equal_runs_are_equal_to_the_byte(script, setup, runs, tmp_path):
    """And neither evaluating more often nor running longer changes a step that both runs have."""
    short = [argument if argument != 2 else 1 for argument in SHORT]
    call(
        f"{script}.py",
        "--setup",
        setup,
        "--out",
        tmp_path / "again",
        *short,
        "--steps",
        4,
        "--save-policies",
    )
    assert (
        (tmp_path / "again" / "metrics.jsonl")
        .read_text()
        .startswith((runs[script] / "metrics.jsonl").read_text())
    )
    rows = {row["step"]: row for row in read_jsonl(tmp_path / "again" / "evals.jsonl")}
    assert [rows[row["step"]] for row in read_jsonl(runs[script] / "evals.jsonl")] == read_jsonl(
        runs[script] / "evals.jsonl"
    )
    assert sorted(p.name for p in (tmp_path / "again" / "policies").iterdir()) == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]


def test_copied_into_an_empty_folder(setup, tmp_path):
    """A script plus common.py runs with --model and --dataset (and --proxy); without --golden the win rate is null."""
    for script in ("ipo_offline", "dpo_online"):
        preference_model = ["--proxy", setup / "proxy"] if script.endswith("online") else []
        folder = tmp_path / script
        folder.mkdir()
        shutil.copy(REPO / f"{script}.py", folder)
        shutil.copy(REPO / "common.py", folder)
        data = [
            "--model",
            setup / "sft",
            "--dataset",
            setup / "d_golden" / "train.jsonl",
            *preference_model,
        ]
        done = call_apart(f"{script}.py", *data, *SHORT, "--golden", setup / "golden", cwd=folder)
        assert "win rates are against the reference's own samples" in done.stdout
        (run,) = (folder / "runs").glob("sft/*")
        evals = read_jsonl(run / "evals.jsonl")
        assert {row["baseline"] for row in evals} == {"sft"} and evals[0]["win_rate"] is not None
        assert evals[0]["win_rate_heldout"] is None
    for some in (
        [],
        ["--model", setup / "sft"],
    ):  # a part is missing: never filled from a task it does not belong to
        done = call_apart("ipo_offline.py", *some, code=1, cwd=tmp_path / "ipo_offline")
        assert "no setup given: pass --model --dataset, or --setup FOLDER" in done.stderr


def test_several_processes_do_not_prepare(tmp_path, monkeypatch):
    (tmp_path / "prepare").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "processes", lambda: 2)
    with pytest.raises(
        SystemExit,
        match="setups/reviews is not ready yet: run `python -m prepare .*` first, as one process",
    ):
        common.check_args(ipo_online.Args())


def test_the_default_start_is_prepared_when_missing(tmp_path):
    """`python ipo_online.py` alone on a fresh clone: one line says what happens first (here prepare is a stand-in)."""
    for name in ("ipo_online.py", "common.py"):
        shutil.copy(REPO / name, tmp_path)
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "__main__.py").write_text(
        "import sys\nprint('preparing', sys.argv[1:])\nsys.exit(3)\n"
    )
    done = call_apart("ipo_online.py", code=1, cwd=tmp_path)
    assert (
        "setups/reviews is not ready yet: running" in done.stdout
        and "preparing ['--out', 'setups/reviews']" in done.stdout
    )
    assert "did not finish" in done.stderr


WRONG = [
    (["--steps", 0], "--steps 0: must be a finite number above 0"),
    (["--batch-size", 0], "--batch-size 0: must be a finite number above 0"),
    (["--batch-size", 401], "--batch-size 401: the data have only 400 usable rows; lower it"),
    (["--eval-every", 0], "--eval-every 0: must be a finite number above 0"),
    (["--beta", "nan"], "--beta nan: must be a finite number"),
    (["--beta", "inf"], "--beta inf: must be a finite number"),
    (["--beta", -0.1], "--beta -0.1: must be a finite number above 0"),
    (["--beta", 0.0], "--beta 0.0: must be a finite number above 0"),
    (["--max-grad-norm", -1.0], "--max-grad-norm -1.0"),
    (["--shuffle", 0], "--shuffle 0: must be a finite number above 0"),
    (["--setup", "nowhere"], "--setup nowhere: no such folder"),
    (["--dataset", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
    (["--dataset", "SETUP"], "is a setup; name the pairs in it, SETUP/d_golden or SETUP/d_initial"),
    (["--baseline", "OTHER"], "other/responses.jsonl: row 0 has no split; see docs/yours.md"),
    (["--dataset", "OTHER"], "other: is a model, no preference data"),
    (["--model", "SETUP"], "SETUP: is a setup; name a model in it, SETUP/sft say"),
    (["--model", "ADAPTER"], "adapter: is an adapter, no whole model; merge it into its model"),
    (["--model", "nowhere"], "nowhere: no "),
    (["--model", "./nowhere"], "./nowhere: there is no such folder"),
    (["--device", "meta"], "--device meta: cannot be used here"),
    (["--device", "cuda:9"], "--device cuda:9: cannot be used here"),
    (["--device", "gpu"], "--device gpu: cannot be used here"),
    (["--golden", "SETUP/sft"], "is no preference model: it has no weights for score.weight"),
    (
        ["--model", "SETUP/proxy", "--max-prompt-tokens", 120],
        "reads at most 128 tokens, 153 may be asked of it",
    ),
    (["--wandb"], "--wandb needs Weights & Biases"),
    (["--max-response-tokens", 3], "--max-response-tokens is 3"),
    (
        ["--model", "OTHER"],
        "d_golden: row 0: the prompt has a word that the tokenizer does not know",
    ),
    (["--setup", "HALF"], "has no sft/: run `python -m prepare --out"),
]


@pytest.mark.parametrize("arguments, message", WRONG, ids=lambda value: str(value))
def test_wrong_arguments_end_in_one_line_and_leave_nothing(
    arguments, message, setup, tmp_path, capfd
):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "other")
    letter_tokenizer().save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "responses.jsonl").write_text(
        '{"prompt": "a", "response": "b", "finished": true}'
    )
    (tmp_path / "half" / "d_golden").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    places = {
        "SETUP": setup,
        "OTHER": tmp_path / "other",
        "HALF": tmp_path / "half",
        "ADAPTER": tmp_path / "adapter",
    }
    arguments = [
        str(places.get(argument, argument)).replace("SETUP", str(setup)) for argument in arguments
    ]
    words = ["--setup", str(setup), "--out", str(tmp_path / "run"), *arguments]
    with pytest.raises(
        SystemExit
    ) as error:  # as the command line would: the message is its only line, the exit code 1
        common.run_command(ipo_offline.main, tyro.cli(ipo_offline.Args, args=words))
    told = str(error.value)
    assert (
        message.replace("SETUP", str(setup)) in told
        and "\n" not in told
        and capfd.readouterr() == ("", "")
    )
    assert not (tmp_path / "run").exists()


def test_a_wrong_argument_ends_with_code_1_and_one_line(setup, tmp_path):
    for script in ("ipo_offline.py", "ipo_online.py"):
        done = call(script, "--setup", setup, "--out", tmp_path / "run", "--steps", 0, code=1)
        assert (
            done.stderr == "error: --steps 0: must be a finite number above 0\n" and not done.stdout
        )
        assert call(script, "--setps", 3, code=2).stderr.count("setps")


def test_a_used_folder_is_refused(setup, runs):
    done = call("ipo_online.py", "--setup", setup, "--out", runs["ipo_online"], *SHORT, code=1)
    assert "there is a run in this place already" in done.stderr


def test_a_run_that_began_while_models_were_loaded_is_not_written_over(runs, tmp_path):
    """The folder was empty when it was chosen, and is looked at again once it is claimed; by --resume too."""
    args = ipo_offline.Args(setup="s", model="m", out=str(tmp_path / "run"))
    out = common.choose_folder(args, "ipo_offline")
    shutil.copytree(runs["ipo_offline"], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="there is a run in this place already"):
        common.begin_run(args, out, "ipo_offline")
    common.LOCKS.pop().release()
    with pytest.raises(SystemExit, match="this run was begun with --setup"):
        common.begin_run(dataclasses.replace(args, resume=True), out, "ipo_offline")
    common.LOCKS.pop().release()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("script", ["ipo_offline.py", "ipo_online.py"])
def test_a_loss_that_is_no_number_names_its_step(script, setup, tmp_path):
    command = [script, "--setup", setup, *SHORT, "--learning-rate", 1e30, "--out"]
    lower = "lower --learning-rate, or clip with --max-grad-norm 1\n"
    done = call(*command, tmp_path / "run", code=1)
    assert re.search(
        rf"error: step [012], rows \[(\d+, ){{3}}\d+\] of the data: the loss is .*; {lower}",
        done.stderr,
    )


def test_a_loss_that_turns_nan_leaves_the_last_good_checkpoint(setup, runs, tmp_path, monkeypatch):
    """The run goes on from there, once the cause is gone, and ends as if nothing had happened."""
    sizes = {"steps": 3, "batch_size": 4, "eval_every": 2, "eval_prompts": 8, "kl_prompts": 4}
    args = ipo_offline.Args(setup=str(setup), out=str(tmp_path / "run"), resume=True, **sizes)
    calls, loss = [], ipo_offline.preference_loss
    broken = lambda *args: loss(*args) * (math.nan if calls.append(1) or len(calls) > 4 else 1)  # noqa: E731  two parts a step
    kl = ipo_offline.kl_to_sft
    for name, bad, message in (
        (
            "preference_loss",
            broken,
            "error: step 2, rows .* the loss is nan, its gradient's norm nan; lower --learning-rate",
        ),
        (
            "kl_to_sft",
            lambda *args: kl(*args) * math.nan,
            "error: step 3: KL to the reference is nan; lower --learning-rate",
        ),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=message):
            patch.setattr(ipo_offline, name, bad)
            ipo_offline.main(dataclasses.replace(args))
        assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["2"]
        common.LOCKS.clear()  # what the end of the process does
    ipo_offline.main(dataclasses.replace(args))
    metrics = [
        read_jsonl(folder / "metrics.jsonl") for folder in (tmp_path / "run", runs["ipo_offline"])
    ]
    assert [row["step"] for row in metrics[0]] == [0, 1, 2]
    assert [row["loss"] for row in metrics[0]] == pytest.approx([row["loss"] for row in metrics[1]])


def test_too_little_memory_ends_in_a_line_that_says_what_to_lower():
    with pytest.raises(
        SystemExit,
        match="^error: out of memory .* lower --batch-size, --eval-batch-size or the --max-...-tokens$",
    ):
        common.run_command(lambda args: torch.empty(2**50), ipo_online.Args())
    with pytest.raises(SystemExit, match="^error: out of memory .* lower --batch-size"):
        common.run_command(
            lambda args: (_ for _ in ()).throw(
                torch.OutOfMemoryError("CUDA out of memory")
            ).__next__(),
            None,
        )


@pytest.mark.parametrize(
    "error", [torch.distributed.DistError("x"), RuntimeError("[gloo/transport/tcp/pair.cc] closed")]
)
def test_the_end_of_another_process_ends_in_a_line(error):
    """Which of the survivors comes to say so before the launcher ends them is chance, so the line is tested here."""
    with pytest.raises(
        SystemExit, match=r"^error: another process of this run has ended \(.*--resume$"
    ):
        common.run_command(lambda args: (_ for _ in ()).throw(error).__next__(), None)


NO_NETWORK = """
import os, socket
def refuse(*args, **options):
    open(os.environ["TRIED"], "a").write(repr(args))
    raise OSError("the network is cut")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


def test_nothing_is_fetched(tmp_path):
    """The reviews task from its data to a trained policy, with every connection refused: none is tried."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    cut = {"PYTHONPATH": str(tmp_path), "TRIED": str(tmp_path / "tried"), "HF_HUB_OFFLINE": "0"}
    few = [
        "--sft-steps",
        2,
        "--golden-steps",
        2,
        "--proxy-steps",
        2,
        "--policy-steps",
        1,
        "--eval-prompts",
        4,
    ]
    call_apart("-m", "prepare", "--pairs", 100, *few, "--out", tmp_path / "setup", **cut)
    call_apart(
        "ipo_online.py", "--setup", tmp_path / "setup", *SHORT, "--out", tmp_path / "run", **cut
    )
    assert not (tmp_path / "tried").exists(), (tmp_path / "tried").read_text()
    done = call_apart(
        "ipo_online.py",
        "--setup",
        tmp_path / "setup",
        "--model",
        "some/model",
        "--out",
        tmp_path / "x",
        code=1,
        **cut,
    )
    assert (
        "error: some/model: no tokenizer can be loaded from it" in done.stderr
        and (tmp_path / "tried").exists()
    )


def test_without_the_git_program(setup, tmp_path):
    call_apart("ipo_offline.py", "--setup", setup, "--out", tmp_path / "run", *SHORT, PATH="")
    assert json.loads((tmp_path / "run" / "args.json").read_text())["git_revision"] is None


def test_both_arms_train_on_the_same_prompts(setup, tmp_path, monkeypatch):
    """At equal seed, step for step; only the responses differ."""
    seen = {}
    for script in (ipo_offline, ipo_online):
        prompts, original = seen.setdefault(script.__name__, []), script.by_length

        def recorded(x, *rest, prompts=prompts, original=original):
            prompts.append(x)
            return original(x, *rest)

        monkeypatch.setattr(script, "by_length", recorded)
        sizes = {"steps": 4, "batch_size": 3, "eval_every": 4, "eval_prompts": 4, "kl_prompts": 4}
        script.main(
            script.Args(setup=str(setup), out=str(tmp_path / script.__name__), seed=5, **sizes)
        )
    assert seen["ipo_offline"] == seen["ipo_online"] and len(seen["ipo_online"]) == 4


def test_a_failing_arm_fails_make_demo(tmp_path):
    """The two runs of the demo go side by side; each one's failure must reach make."""
    shutil.copy(REPO / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / "installed").touch()
    for failing, code in (
        ("ipo_offline.py", 2),
        ("ipo_online.py", 2),
        ("frontier", 2),
        ("none", 0),
    ):
        fake = tmp_path / "python"
        fake.write_text(f'#!/bin/sh\ncase "$*" in *{failing}*) exit 1;; esac\n')
        fake.chmod(0o755)
        done = subprocess.run(
            ["make", "demo", "PY=./python"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code, (failing, done.stdout, done.stderr)


def test_a_folder_may_be_named_with_a_slash_and_is_never_overwritten(setup, tmp_path):
    command = [
        "-m",
        "prepare.sft",
        "--model",
        setup / "untrained",
        "--dataset",
        setup / "d_initial",
        "--steps",
        2,
    ]
    call(*command, "--out", f"{tmp_path}/sft/")
    assert (tmp_path / "sft" / "model.safetensors").is_file()
    assert "is there already" in call(*command, "--out", tmp_path / "sft", code=1).stderr


def test_a_golden_model_that_exists_is_taken_as_it_is(setup, tmp_path):
    """--golden-steps 0: the same scores and the same form; a language model is refused, it has no score."""
    command = [
        "-m",
        "prepare.preference_model",
        "train",
        "--dataset",
        setup / "d_initial",
        "--steps",
        0,
    ]
    call(*command, "--model", setup / "golden", "--form", "pairwise", "--out", tmp_path / "golden")
    assert "pointwise" in (tmp_path / "golden" / "config.json").read_text()
    assert (tmp_path / "golden" / "model.safetensors").read_bytes() == (
        setup / "golden" / "model.safetensors"
    ).read_bytes()
    done = call(*command, "--model", setup / "sft", "--out", tmp_path / "other", code=1)
    assert (
        "is no preference model: it has no weights for score.weight" in done.stderr
        and not (tmp_path / "other").exists()
    )


def test_bf16_and_shuffle_windows(setup, tmp_path):
    call(
        "ipo_offline.py",
        "--setup",
        setup,
        "--out",
        tmp_path / "off",
        *SHORT,
        "--precision",
        "bf16",
        "--shuffle",
        2,
    )
    call(
        "ipo_online.py",
        "--setup",
        setup,
        "--out",
        tmp_path / "on",
        *SHORT,
        "--precision",
        "bf16",
        "--max-grad-norm",
        1.0,
    )
    for name in ("off", "on"):
        assert read_jsonl(tmp_path / name / "metrics.jsonl")[0]["loss"] == 25.0
        assert (
            AutoModelForCausalLM.from_pretrained(tmp_path / name / "policy").dtype == torch.float32
        )


def test_frontier_draws_and_prints(runs, tmp_path):
    done = call(
        "-m", "paper", "frontier", *runs.values(), "--out", tmp_path / "pictures" / "frontier"
    )
    assert (
        "ipo_offline" in done.stdout
        and "ipo_online" in done.stdout
        and "ground truth" in done.stdout
    )
    assert (tmp_path / "pictures" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "pictures" / "frontier.svg").read_text()
    assert "online IPO" in svg and "offline IPO" in svg and "SFT" in svg
    assert "not the folder of a run" in call("-m", "paper", "frontier", tmp_path, code=1).stderr
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "args.json").write_text("[]")
    assert (
        "is not what a run wrote"
        in call("-m", "paper", "frontier", tmp_path / "list", code=1).stderr
    )
    # two runs of a kind are told apart; an ending in --out is not written twice; a run that has only begun has no curve
    twice = [shutil.copytree(runs["ipo_online"], tmp_path / name) for name in ("first", "second")]
    done = call("-m", "paper", "frontier", *twice, "--out", tmp_path / "two.png")
    assert (
        "first" in done.stdout
        and "second" in done.stdout
        and "these runs have not one setup" not in done.stdout
    )
    svg = (tmp_path / "two.svg").read_text()
    assert (
        "online IPO, first" in svg
        and "online IPO, second" in svg
        and not list(tmp_path.glob("*.png.*"))
    )
    assert (
        "is a folder; name the picture"
        in call("-m", "paper", "frontier", *twice, "--out", tmp_path, code=1).stderr
    )
    # of one that is running, or was killed, the last line may be half there
    with open(twice[1] / "evals.jsonl", "a") as file:
        file.write('{"step": 4, "kl": ')
    # the best evaluation is another than the last
    rows = read_jsonl(twice[0] / "evals.jsonl")
    rows[1] |= {"win_rate": 0.9876, "kl": 2.345}
    (twice[0] / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        "0.988 at 2.35 nats"
        in call("-m", "paper", "frontier", *twice, "--out", tmp_path / "two").stdout
    )
    call("tools/report.py", *twice, "--out", tmp_path / "two.html")
    page = (tmp_path / "two.html").read_text()
    assert "0.988 at 2.35 nats" in page and "have not one setup" not in page
    # prompts of other data that speak of a month, and runs from two setups
    args, rows = (
        json.loads((twice[0] / "args.json").read_text()),
        read_jsonl(twice[0] / "responses" / "3.jsonl"),
    )
    rows = [row | {"prompt": f"We met in May, {i}"} for i, row in enumerate(rows)]
    (twice[0] / "responses" / "3.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (twice[0] / "args.json").write_text(json.dumps(args | {"model_sha256": "of another"}))
    done = call("-m", "paper", "frontier", *twice, "--out", tmp_path / "two")
    assert (
        "these runs have not one setup: neither their KL nor their win rates compare" in done.stdout
    )
    call("tools/report.py", *twice, "--out", tmp_path / "two.html")
    assert (
        "These runs have not one setup: neither their KL nor their win rates compare"
        in (tmp_path / "two.html").read_text()
    )
    # a baseline of another name has its own name
    (twice[0] / "args.json").write_text(json.dumps(args | {"baseline": "elsewhere/golden-rival"}))
    call("-m", "paper", "frontier", twice[0], "--out", tmp_path / "rival")
    svg = (tmp_path / "rival.svg").read_text()
    assert (
        "win rate against golden-rival" in svg
        and ">golden-rival (parity)" in svg
        and "baseline policy" not in svg
    )
    (twice[0] / "evals.jsonl").write_text(
        (twice[0] / "evals.jsonl").read_text().splitlines()[0] + "\n"
    )
    done = call("-m", "paper", "frontier", *twice, "--out", tmp_path / "three", code=1)
    assert "first: has not moved from SFT yet" in done.stderr and not list(tmp_path.glob("three*"))


def test_prepare_makes_no_start_among_other_things(tmp_path):
    (tmp_path / "notes.txt").write_text("not a setup")
    done = call("-m", "prepare", "--out", tmp_path, "--pairs", 40, code=1)
    assert (
        f"error: --out {tmp_path}: there is something in this folder already, and it is no setup"
        in done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_stage_that_diverges_is_not_kept(setup, tmp_path):
    """SFT or a preference model that came to no number would be taken for finished; one line says what to lower."""
    few = {"steps": 5, "learning_rate": 1e30, "out": str(tmp_path / "made")}
    roles = str(setup / "untrained"), str(setup / "d_initial")
    for main, args, name in (
        (sft.main, sft.Args(*roles, **few), "sft"),
        (preference_model.train, preference_model.Train(*roles, **few), "made"),
    ):
        with pytest.raises(
            SystemExit,
            match=rf"^error: {name}: step \d: the loss is .*nan; lower the learning rate$",
        ):
            main(args)
        assert not (tmp_path / "made").exists()


def test_a_broken_note_of_what_was_prepared_ends_in_one_line(setup, tmp_path):
    shutil.copytree(setup, tmp_path / "setup")
    (tmp_path / "setup" / "prepare.json").write_text("")
    done = call(
        "-m",
        "prepare",
        "--out",
        tmp_path / "setup",
        "--seed",
        7,
        "--pairs",
        400,
        *MINIATURE,
        code=1,
    )
    assert done.stderr.startswith(f"error: {tmp_path}/setup/prepare.json: cannot be read")


def test_a_task_has_prompts_on_either_side(tmp_path):
    for args, message in (
        ({"test_share": 1.0}, r"--test-share 1.0: holds out (\d+) of \1 prompts"),
        ({"test_share": 0.0001}, "--test-share 0.0001: holds out 0 of"),
        ({"pairs": 9}, "--pairs 9: must be at least 10"),
    ):
        with pytest.raises(SystemExit, match=message):
            reviews.main(reviews.Args(out=str(tmp_path / "task"), **args))
    assert not (tmp_path / "task").exists()


def test_without_a_baseline_policy_the_first_prompts_are_asked():
    """Distinct ones, in their order, though the first comes again later."""
    pairs = [
        {"text": text, "prompt": [number]}
        for number, text in enumerate(("May", "June", "July", "May"))
    ]
    evaluation = load_evaluation(ipo_offline.Args(eval_prompts=2), None, pairs)
    assert evaluation.texts == ["May", "June"] and evaluation.train_count == 2


def test_sft_says_how_likely_the_data_are(setup, tmp_path):
    """Nats a token of both responses, by hand; of a folder with a test split on that too, where a bad row is left out."""
    rows = read_jsonl(setup / "d_initial" / "train.jsonl")[:6]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    bad = rows[5] | {"chosen": "unheard"}
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(map(json.dumps, [rows[4], bad])))
    command = ["-m", "prepare.sft", "--model", setup / "sft", "--steps", 0, "--dataset"]
    done = call(*command, tmp_path / "data", "--out", tmp_path / "both")
    found = json.loads((tmp_path / "both" / "nats_per_token.json").read_text())
    policy, tokenizer = load_policy(str(setup / "sft"), "cpu", 64)
    for split, some in (("train", rows[:4]), ("test", rows[4:5])):
        total = count = 0
        for row, name in itertools.product(some, ("chosen", "rejected")):
            head, whole = (
                tokenizer(row["prompt"]).input_ids,
                tokenizer(row["prompt"] + row[name]).input_ids,
            )
            whole += [tokenizer.eos_token_id] * row[f"{name}_finished"]
            logprobs = policy(torch.tensor([whole])).logits[0].log_softmax(-1)
            total -= sum(logprobs[i - 1, whole[i]].item() for i in range(len(head), len(whole)))
            count += len(whole) - len(head)
        assert (
            found[split] == pytest.approx(total / count, rel=1e-5)
            and f"{split} {found[split]:.3f}" in done.stdout
        )
    call(*command, tmp_path / "data" / "train.jsonl", "--out", tmp_path / "one")
    assert json.loads((tmp_path / "one" / "nats_per_token.json").read_text()) == {
        "train": found["train"]
    }


def test_the_frontier_refuses_a_baseline_that_a_run_has_not_met(setup, runs, tmp_path):
    responses = setup / "baseline" / "responses.jsonl"
    lines = responses.read_text().splitlines(keepends=True)
    moved = shutil.copytree(setup, tmp_path / "setup")
    (moved / "baseline" / "responses.jsonl").write_text("".join(lines[1:]))
    shutil.copytree(runs["ipo_online"], tmp_path / "own")
    args = json.loads((tmp_path / "own" / "args.json").read_text()) | {
        "baseline": str(moved / "baseline")
    }
    (tmp_path / "own" / "args.json").write_text(json.dumps(args))
    done = call("-m", "paper", "frontier", tmp_path / "own", "--out", tmp_path / "frontier", code=1)
    assert "it is not the baseline that this run met" in done.stderr


def test_evaluation_prompts_come_from_the_start_whatever_the_training_data(setup, tmp_path):
    """--dataset is training data only."""
    args = type("Args", (), {})()
    args.setup, args.baseline, args.dataset = (
        str(setup),
        str(setup / "baseline"),
        str(tmp_path / "other.jsonl"),
    )
    args.eval_prompts, args.max_prompt_tokens, args.max_response_tokens, args.on_bad_row = (
        8,
        16,
        33,
        "error",
    )
    tokenizer = load_tokenizer(str(setup / "sft"))
    rows = read_jsonl(setup / "d_golden" / "train.jsonl")[-5:]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = load_evaluation(args, tokenizer, load_pairs(args.dataset, tokenizer, 16, 33, "error"))
    args.dataset = str(setup / "d_golden")
    assert (
        load_evaluation(args, tokenizer, load_pairs(args.dataset, tokenizer, 16, 33, "error"))
        == other
    )
    assert (
        len(other.pairs) == 8
        and other.train_count == 8
        and len(other.prompts) == len(other.baseline_responses) == 16
    )


BASELINES = [
    ({"split": "validation"}, 1, "row 1: split must be train or test, and finished true or false"),
    ({"finished": "yes"}, 1, "row 1: split must be train or test, and finished true or false"),
    ({"prompt": 3}, 1, "row 1: prompt and response must be strings, and the prompt not blank"),
    ({"prompt": " "}, 1, "row 1: prompt and response must be strings, and the prompt not blank"),
    (
        {"response": ["a"]},
        1,
        "row 1: prompt and response must be strings, and the prompt not blank",
    ),
    (
        {"prompt": "Camera in Smarch:"},
        1,
        "the prompt 'Camera in Smarch:' has a word that the tokenizer does not know",
    ),
    (
        {"split": "test"},
        99,
        "has no row of the split train, whose prompts the win rate and the KL are measured on",
    ),
    (
        {"prompt": "Camera in May" + ", screen and" * 9},
        1,
        r"has a prompt of \d+ tokens, --max-prompt-tokens is 16",
    ),
    ({"finished": None}, 1, "row 1 has no finished"),
]


@pytest.mark.parametrize("change, rows, message", BASELINES, ids=lambda value: str(value))
def test_a_baseline_that_cannot_be_used_is_named(change, rows, message, setup, tmp_path):
    """Of the stored responses in win rates nothing is left out or cut silently either."""
    stored = read_jsonl(setup / "baseline" / "responses.jsonl")[:4]
    stored = [
        {**row, **(change if 1 <= i <= rows or rows == 99 else {})} for i, row in enumerate(stored)
    ]
    if not isinstance(stored[1]["prompt"], str) or not isinstance(
        stored[1]["response"], str
    ):  # a column has one type
        stored = [row | {name: change[name] for name in change} for row in stored]
        message = message.replace("row 1", "row 0")
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, stored)))
    args = ipo_online.Args(
        setup=str(setup), baseline=str(tmp_path), dataset=str(setup / "d_golden")
    )
    tokenizer = load_tokenizer(str(setup / "sft"))
    with pytest.raises(SystemExit, match=f"error: {tmp_path}/responses.jsonl: {message}"):
        load_evaluation(args, tokenizer, load_pairs(args.dataset, tokenizer, 16, 33, "error"))


def test_a_baseline_that_may_write_more_is_said(setup, tmp_path, capsys):
    args = ipo_online.Args(
        setup=str(setup), baseline=str(setup / "baseline"), dataset=str(setup / "d_golden")
    )
    tokenizer = load_tokenizer(str(setup / "sft"))
    pairs = load_pairs(args.dataset, tokenizer, 16, 33, "error")
    lengths = [
        len(response) for response in load_evaluation(args, tokenizer, pairs).baseline_responses
    ]
    args.max_response_tokens, args.on_bad_row = sorted(lengths)[len(lengths) // 2], "skip"
    longer = sum(length > args.max_response_tokens for length in lengths)
    load_evaluation(args, tokenizer, pairs)
    told = f"responses.jsonl: {longer} of {len(lengths)} responses are longer than --max-response-tokens lets the policy write"
    assert longer and told in capsys.readouterr().out


def test_a_run_says_what_its_evaluations_found(setup, tmp_path, monkeypatch):
    """A line for each, with standard errors; what nothing scores is left out, and no baseline is sampled for it."""
    asked, sample_in_parts = [], ipo_offline.sample_in_parts
    monkeypatch.setattr(
        ipo_offline, "sample_in_parts", lambda *told: asked.append(told) or sample_in_parts(*told)
    )
    done = call("ipo_offline.py", "--setup", setup, "--out", tmp_path / "run", *SHORT)
    told = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    for line, row in zip(told, read_jsonl(tmp_path / "run" / "evals.jsonl"), strict=True):
        number = {
            name: f"{row[name]:.3f} ± {row[name + '_stderr']:.3f}"
            for name in ("win_rate", "proxy_win_rate")
        }
        told = f"step {row['step']}: KL {row['kl']:.2f} ± {row['kl_stderr']:.2f} nats, win rate {number['win_rate']}, "
        told += f"by the proxy {number['proxy_win_rate']}, accuracy {row['accuracy']:.3f}, "
        assert line == told + f"{row['response_length']:.1f} tokens a response"
    own = ["--model", setup / "sft", "--dataset", setup / "d_golden"]
    done = call("ipo_offline.py", *own, "--out", tmp_path / "own", *SHORT)
    assert (
        "step 3: KL" in done.stdout
        and "win rate" not in done.stdout
        and "by the proxy" not in done.stdout
    )
    names = {"model": str(setup / "sft"), "dataset": str(setup / "d_golden"), "device": "cpu"}
    sizes = {"steps": 1, "batch_size": 4, "eval_every": 1, "eval_prompts": 4, "kl_prompts": 4}
    for golden, samples in (
        (None, 2),
        (str(setup / "golden"), 3),
    ):  # after 0 steps and after 1; the baseline's
        asked.clear()
        ipo_offline.main(
            ipo_offline.Args(**names, **sizes, golden=golden, out=str(tmp_path / f"run{samples}"))
        )
        assert len(asked) == samples


def test_a_run_says_whether_the_code_was_edited(tmp_path, monkeypatch):
    """args.json has the revision; with `-dirty` where the script or common.py is not in it (a copy), or not as it is."""
    (tmp_path / "code").mkdir()
    shutil.copy(REPO / "common.py", tmp_path / "code")
    git = ["git", "-C", tmp_path / "code", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(common, "__file__", str(tmp_path / "code" / "common.py"))
    common.begin_run(ipo_online.Args(device="cpu"), tmp_path / "run", "ipo_online")
    clean = json.loads((tmp_path / "run" / "args.json").read_text())["git_revision"]
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "code" / "notes.txt").write_text("no code")
    assert common.revision("ipo_online") == clean
    (tmp_path / "code" / "copy.py").write_text("a script of one's own")
    assert common.revision("copy") == f"{clean}-dirty" and common.revision("ipo_online") == clean
    (tmp_path / "code" / "common.py").write_text("# edited")
    assert common.revision("ipo_online") == f"{clean}-dirty"


def test_importing_a_script_changes_nothing_else():
    """Whoever takes a function from a script keeps transformers' attention and its messages as they are."""
    lines = "import transformers; from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as known"
    state = "(known['sdpa'], transformers.utils.logging.get_verbosity())"
    call_apart("-c", f"{lines}; before = {state}; import ipo_online; assert {state} == before")


WANDB = """import json, os
class Run:
    def finish(self): open(os.environ["TOLD"], "a").write('"finished"\\n')
def init(**names):
    open(os.environ["TOLD"], "a").write(json.dumps(names) + "\\n")
    return Run()
"""


def test_tracking_ends_with_the_run_and_goes_on_with_it(setup, tmp_path):
    """A stand-in for wandb: one id for a run whenever it goes on, another for another run in the same place, and an end that a
    launcher does not swallow."""
    (tmp_path / "wandb.py").write_text(WANDB)
    places = {"PYTHONPATH": str(tmp_path), "TOLD": str(tmp_path / "told")}
    command = [
        "ipo_offline.py",
        "--setup",
        setup,
        "--out",
        tmp_path / "run",
        *SHORT,
        "--device",
        "cpu",
        "--wandb",
        "--resume",
    ]
    call_apart("-m", "torch.distributed.run", "--nproc-per-node", 2, "--", *command, **places)
    shutil.rmtree(tmp_path / "run" / "policy")
    call_apart(*command, **places)
    shutil.rmtree(tmp_path / "run")
    call_apart(*command, **places)
    began, finished, again, finished_again, other, _ = map(
        json.loads, (tmp_path / "told").read_text().splitlines()
    )
    assert finished == finished_again == "finished" and began["id"] == again["id"] != other["id"]
    assert began["resume"] == "allow"
    assert (
        began["name"] == str(tmp_path / "run")
        and began["config"]["steps"] == 3
        and began["sync_tensorboard"]
    )


def test_an_online_script_needs_prompts_alone(setup, runs, tmp_path):
    """The same run to the byte as on the pairs; without a setup it knows no pairs to be measured on, and says null."""
    rows = [{"prompt": row["prompt"]} for row in read_jsonl(setup / "d_golden" / "train.jsonl")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["--dataset", tmp_path / "prompts.jsonl"]
    call("ipo_online.py", "--setup", setup, *data, "--out", tmp_path / "run", *SHORT)
    for name in ("metrics", "evals"):
        assert (tmp_path / "run" / f"{name}.jsonl").read_bytes() == (
            runs["ipo_online"] / f"{name}.jsonl"
        ).read_bytes()
    own = [
        "--model",
        setup / "sft",
        "--proxy",
        setup / "proxy",
        "--golden",
        setup / "golden",
        *data,
    ]
    call("ipo_online.py", *own, "--out", tmp_path / "own", *SHORT)
    last = read_jsonl(tmp_path / "own" / "evals.jsonl")[-1]
    assert (
        last["accuracy"] is last["chosen_logratio"] is last["rejected_logratio"] is None
        and 0 <= last["win_rate"] <= 1
    )
    page = ["--out", tmp_path / "page.html"]
    assert "wrote" in call("tools/report.py", tmp_path / "run", tmp_path / "own", *page).stdout
    assert (
        call(
            "-m", "paper", "frontier", tmp_path / "own", "--out", tmp_path / "picture"
        ).stdout.count("own")
        == 1
    )
    done = call(
        "ipo_hybrid.py", "--setup", setup, *data, "--out", tmp_path / "hybrid", *SHORT, code=1
    )
    assert "there must be columns chosen and rejected, there are prompt" in done.stderr


@needs_shared
def test_a_real_language_model_in_miniature(tmp_path):
    """prepare, both scripts and the picture on stories260K: its own SFT, conversational data refused in one line."""
    model, data = SHARED / "models" / "stories260K", SHARED / "data" / "stories" / "pairs.jsonl.gz"
    rows = tmp_path / "pairs.jsonl"
    import gzip

    with gzip.open(data, "rt") as file:
        rows.write_text("".join(line for line, _ in zip(file, range(120))))
    limits = ["--max-prompt-tokens", 64, "--max-response-tokens", 64]
    small = [*limits, "--batch-size", 4]
    command = [
        "-m",
        "prepare",
        "--out",
        tmp_path / "setup",
        "--model",
        model,
        "--dataset",
        rows,
        *small,
        *MINIATURE,
    ]
    call(
        *[
            0 if previous == "--sft-steps" else argument
            for previous, argument in zip([None, *command], command)
        ]
    )
    for name, value in load_policy(str(model), "cpu", 64)[0].state_dict().items():
        assert torch.equal(
            value, load_policy(str(tmp_path / "setup" / "sft"), "cpu", 64)[0].state_dict()[name]
        )
    for script in ("ipo_offline", "ipo_online"):
        call(
            f"{script}.py",
            "--setup",
            tmp_path / "setup",
            "--out",
            tmp_path / script,
            *SHORT,
            *limits,
        )
        assert read_jsonl(tmp_path / script / "metrics.jsonl")[0]["loss"] == 25.0
    call(
        "-m",
        "paper",
        "frontier",
        tmp_path / "ipo_offline",
        tmp_path / "ipo_online",
        "--out",
        tmp_path / "frontier",
    )
    chat = SHARED / "data" / "oasst" / "pairs.jsonl.gz"
    done = call(
        "ipo_offline.py",
        "--model",
        model,
        "--dataset",
        chat,
        "--out",
        tmp_path / "chat",
        *limits,
        code=1,
    )
    assert "row 0: conversational, but the tokenizer has no chat template" in done.stderr


def test_benchmarks_say_what_they_need():
    for path in (REPO / "benchmarks").glob("*.py"):
        if path.stem not in (
            "trl_steps",
            "shapes",
        ):  # TRL's side of steps.py, and what several share
            text = call(path, "--help").stdout
            assert text.startswith("usage: ") and path.name in text.splitlines()[0]
    if importlib.util.find_spec("trl"):
        assert "no such setup" in call("benchmarks/steps.py", "--setup", "nowhere", code=1).stderr
    else:
        needed = (
            'error: this benchmark needs TRL: pip install "trl==1.16.0"; --no-trl goes without\n'
        )
        assert call("benchmarks/steps.py", code=1).stderr == needed


def test_a_start_of_random_words_has_the_lengths_it_was_asked_for(tmp_path, monkeypatch):
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    monkeypatch.setattr(
        shapes,
        "config_of",
        lambda shape: LlamaConfig(vocab_size=50, tie_word_embeddings=True, **sizes),
    )
    shapes.make_setup(str(tmp_path), "tiny", rows=6, prompt_tokens=8, response_tokens=5)
    _, tokenizer = load_policy(str(tmp_path / "sft"), "cpu", 13)
    pairs = load_pairs(str(tmp_path / "d_golden"), tokenizer, 8, 5, "fail")
    assert [len(pair["prompt"]) for pair in pairs] == [8, 4] * 3
    assert all(
        len(pair[kind]) == 5 and pair[kind][-1] == 1
        for pair in pairs
        for kind in ("chosen", "rejected")
    )
    proxy = common.load_preference_model(str(tmp_path / "proxy"), tokenizer, "cpu", 8, 5)
    assert proxy.policy_tokenizer is None  # it shares its ids
