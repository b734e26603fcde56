"""Several processes of one run, on CPUs: they give what one process gives, and end as one."""

import signal
import time

import psutil
import pytest

from tests.conftest import call, call_apart, read_jsonl
from tests.test_resume import assert_equal_runs, begin, steps_taken, wait_for

SIZES = "--steps 8 --batch-size 4 --micro-batch-size 1 --eval-every 4 --eval-at 4".split()
SIZES += "--eval-prompts 9 --kl-prompts 5 --eval-batch-size 4".split()
TWO = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1".split()
TWO += "--mixed_precision no --dynamo_backend no --main_process_port 0".split()
CPU = {"ACCELERATE_USE_CPU": "1"}  # whatever the name of --multi_gpu


@pytest.mark.parametrize("script", ["ipo_offline", "ipo_online", "ipo_hybrid"])
def test_two_processes_compute_what_one_computes(script, setup, tmp_path):
    """The same texts and pairs, numbers to the digits of fp32 or float64, each line printed once.

    Of the hybrid's two processes one reads all of its rows, and the other one none. The two compute
    each layer again in the backward pass.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    tolerance = 1e-9 if script == "ipo_hybrid" else 1e-5
    command = ["tests/in_double.py", script] if tolerance < 1e-5 else [f"{script}.py"]
    command += ["--setup", setup, *SIZES, "--learning-rate", 1e-4]
    command += ["--save-pairs"] * (script != "ipo_offline") + ["--out"]
    call(*command, one)
    done = call_apart(*TWO, *command, two, "--gradient-checkpointing", **CPU)
    for told in ("step 0: ", "step 8: ", f"wrote {two}"):
        assert done.stdout.count(told) == 1
    files = sorted(path.relative_to(one) for path in one.rglob("*.jsonl"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.jsonl"))
    for file in files:
        rows, expected = read_jsonl(two / file), read_jsonl(one / file)
        if file.name == "timings.jsonl":
            rows, expected = ([row["step"] for row in logged] for logged in (rows, expected))
            assert rows == expected
            continue
        near = tolerance if file.name == "metrics.jsonl" else 1e-5
        for row in expected:
            for name, value in row.items():
                if isinstance(value, float):
                    row[name] = pytest.approx(value, rel=near, abs=near)
        assert rows == expected, file


def test_killed_it_ends_in_an_error_and_continues(setup, tmp_path):
    """kill -9 of one process ends all, and --resume ends as a run does that was never killed."""
    command = [*TWO, "ipo_online.py", "--setup", setup, *SIZES, "--steps", 32, "--resume", "--out"]
    began, process = time.time(), begin(*command, tmp_path / "run", **CPU)
    wait_for(lambda: steps_taken(tmp_path / "run", since=began) > 9, process)
    both = psutil.Process(process.pid).children(recursive=True)
    both = [child for child in both if "ipo_online.py" in child.cmdline()]
    max(both, key=lambda child: child.pid).send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode > 0 and "Signal 9 (SIGKILL)" in errors
    assert (tmp_path / "run" / "checkpoint").exists()
    call_apart(*command, tmp_path / "run", **CPU)
    call_apart(*command, tmp_path / "whole", **CPU)
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_batch_that_cannot_be_shared_is_refused_once(setup, tmp_path):
    command = [*TWO, "ipo_offline.py", "--setup", setup, "--batch-size", 5, "--out"]
    process = begin(*command, tmp_path / "run", **CPU)
    _, errors = process.communicate()
    told = "error: --batch-size 5: is no multiple of 2 processes\n"
    assert process.returncode > 0 and errors.count(told) == 1 and not (tmp_path / "run").exists()
