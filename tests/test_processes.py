"""Several processes of one run, on CPUs: data parallel and FSDP2 give what one process gives, and end as one."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import safetensors.torch
import torch

from tests.conftest import REPO, SHORT, call_apart, made_once, read_jsonl
from tests.test_resume import begin, steps_taken, wait_for

SIZES = [
    "--steps",
    20,
    "--batch-size",
    4,
    "--eval-every",
    10,
    "--eval-prompts",
    9,
    "--kl-prompts",
    5,
    "--eval-batch-size",
    4,
]
KINDS = {
    "data parallel": ["--multi_gpu"],
    "fsdp": ["--use_fsdp", "--fsdp_version", 2],
}  # on CPUs, whatever their names


def launch(kind):
    """The words before a script that start it as two processes."""
    settings = [
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        0,
    ]
    return ["-m", "accelerate.commands.launch", *KINDS[kind], "--num_processes", 2, *settings]


def difference(a, b, name):
    """The largest relative difference of a metric over the steps of two runs."""
    pairs = zip(read_jsonl(a / "metrics.jsonl"), read_jsonl(b / "metrics.jsonl"), strict=True)
    return max(abs(x[name] - y[name]) / abs(x[name]) for x, y in pairs)


@pytest.fixture(scope="session")
def alone(setup, tmp_path_factory):
    """One process of each side, in float64."""

    def run(folder):
        for script in ("ipo_offline", "ipo_online"):
            call_apart(
                "tests/in_double.py", script, "--setup", setup, *SIZES, "--out", folder / script
            )

    return made_once(tmp_path_factory, "alone", run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", ["ipo_offline", "ipo_online"])
def test_two_processes_compute_what_one_computes(script, kind, setup, alone, tmp_path):
    """float64: losses to 1e-9 over 20 steps, the sampled texts to the letter, every evaluation, the final weights.

    The two compute layers again in the backward pass, the one does not.
    """
    command = [
        "tests/in_double.py",
        script,
        "--setup",
        setup,
        *SIZES,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    ]
    command += [
        "--gradient-checkpointing",
        {"ipo_offline": "selective", "ipo_online": "full"}[script],
    ]
    done = call_apart(*launch(kind), *command)
    assert done.stdout.count(f"wrote {tmp_path}/run") == 1
    one, two = alone / script, tmp_path / "run"
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        assert difference(one, two, name) < 1e-9, name
    ties = [[row["ties"] for row in read_jsonl(folder / "metrics.jsonl")] for folder in (one, two)]
    assert ties[0] == ties[1]
    for a, b in zip(read_jsonl(one / "evals.jsonl"), read_jsonl(two / "evals.jsonl"), strict=True):
        assert a == {
            name: pytest.approx(v, rel=1e-6, abs=1e-9) if isinstance(v, float) else v
            for name, v in b.items()
        }
    for step in (0, 10, 20):
        texts = [
            [row["response"] for row in read_jsonl(folder / f"responses/{step}.jsonl")]
            for folder in (one, two)
        ]
        assert texts[0] == texts[1] and len(texts[0]) == 18
    weights = [
        safetensors.torch.load_file(folder / "policy" / "model.safetensors")
        for folder in (one, two)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-9, atol=1e-11)
    names = [{path.name.split(".")[0] for path in folder.iterdir()} for folder in (one, two)]
    assert names[0] == names[1] and len(list(two.glob("events*"))) == 1


def test_first_losses_agree_in_fp32(setup, runs, tmp_path):
    command = [
        "ipo_offline.py",
        "--setup",
        setup,
        *SHORT,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    ]
    call_apart(*launch("data parallel"), *command)
    ours, theirs = (
        read_jsonl(folder / "metrics.jsonl") for folder in (tmp_path / "run", runs["ipo_offline"])
    )
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert ours[1]["loss"] == pytest.approx(theirs[1]["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_it_ends_in_a_line_and_goes_on(kind, setup, tmp_path):
    """kill -9 of one process: the others say so and end, and --resume ends with the weights of a run that was not killed."""
    command = [
        *launch(kind),
        "ipo_online.py",
        "--setup",
        setup,
        *SIZES,
        "--steps",
        40,
        "--device",
        "cpu",
        "--resume",
        "--out",
    ]
    began, process = time.time(), begin(*command, tmp_path / "run")
    wait_for(lambda: steps_taken(tmp_path / "run", since=began) > 12, process)
    workers = [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if "ipo_online.py" in " ".join(p.cmdline())
    ]
    workers = [p for p in workers if not [child for child in p.children() if child in workers]]
    max(workers, key=lambda p: p.pid).send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "Signal 9 (SIGKILL)" in errors
    call_apart(*command, tmp_path / "run")
    call_apart(*command, tmp_path / "whole")
    for name in ("metrics.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (
            name
        )


def test_a_batch_that_cannot_be_shared_is_refused_once(setup, tmp_path):
    command = [
        *launch("data parallel"),
        "ipo_offline.py",
        "--setup",
        setup,
        "--batch-size",
        5,
        "--device",
        "cpu",
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert (
        done.stderr.count(
            "error: --batch-size 5: 2 processes share it, it must be a multiple of that"
        )
        == 1
    )
