"""Nothing lost: a run that was killed, interrupted or ran out of disk goes on, and ends as if nothing had happened."""

import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import common
import ipo_offline
import ipo_online
from tests.conftest import MINIATURE, REPO, call, read_jsonl

LONG = ["--steps", 24, "--batch-size", 4, "--eval-every", 4, "--eval-prompts", 8, "--kl-prompts", 4]
KILLS = int(os.environ.get("TANDEM_KILLS", 5))


def hear_ctrl_c():
    """A shell's background jobs ignore Ctrl-C, and so would every process begun here, were the tests such a job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(*command):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": hear_ctrl_c,
    }
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=REPO, env=env, **options)


def wait_for(sign, process):
    """Until sign() is true; the process must not end before."""
    while not sign():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def steps_taken(folder, since: float) -> int:
    """How many steps a run has logged, 0 before the process that began at `since` has come to log one."""
    timings = folder / "timings.jsonl"
    return (
        timings.read_text().count("\n")
        if timings.exists() and timings.stat().st_mtime > since
        else 0
    )


def assert_equal_runs(folder, other, count=24):
    for name in ("metrics.jsonl", "evals.jsonl", "policy/model.safetensors", "responses/8.jsonl"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    steps = [row["step"] for row in read_jsonl(folder / "timings.jsonl")]
    assert (
        steps == [row["step"] for row in read_jsonl(other / "timings.jsonl")] == list(range(count))
    )


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(setup, tmp_path):
    """kill -9, some before the first step, most in the middle of it all; every call but the first is the same."""
    whole = ["ipo_online.py", "--setup", setup, *LONG, "--out", tmp_path / "whole"]
    call(*whole)
    folder, rng, reached = tmp_path / "killed", random.Random(0), [0]
    command = [*whole[:-1], folder, "--resume"]
    for kill in range(KILLS):
        began, process = time.time(), begin(*command)
        if kill % 5:  # one to nine steps after the last checkpoint, and a part of a step later
            step = reached[-1] + rng.randint(1, 9)
            while process.poll() is None and steps_taken(folder, since=began) < step:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.05)
        else:  # while it starts, or loads
            time.sleep(rng.random() * 4)
        process.kill()
        if process.wait() != -signal.SIGKILL:  # it was faster, and is finished
            shutil.rmtree(folder)
        reached.append(
            max(
                [int(path.name) for path in folder.glob("checkpoint/*") if path.name.isdigit()],
                default=0,
            )
        )
    call(*command)
    assert len(set(reached)) > 2, reached
    assert_equal_runs(folder, tmp_path / "whole")
    assert not (folder / "checkpoint").exists()
    assert "this run is finished" in call(*command).stdout


class Killed(BaseException):
    """Nothing catches it."""


DOOM = {}  # thread: who is to die; folder: whose changes it counts; left: how many there are before its end


def watch(event: str, args: tuple) -> None:
    """Called by Python before it opens, renames, cuts or removes; behind the end all of these fail."""
    if not DOOM or DOOM["thread"] != threading.get_ident():
        return
    removes = event in ("os.remove", "os.rmdir")
    changes = (
        removes
        or event in ("os.rename", "os.truncate")
        or (event == "open" and set(args[1] or "") & set("wax+"))
    )
    within = str(args[0]).startswith(DOOM["folder"]) if args else False
    within |= removes and args[1] >= 0  # shutil.rmtree removes by names within an open folder
    if changes and within and not str(args[0]).endswith(".lock"):
        DOOM["left"] -= 1
        if DOOM["left"] < 0:
            raise Killed


def test_killed_before_any_change_of_a_file_it_keeps_what_it_had(setup, tmp_path):
    """One change more at each try since the last checkpoint, until the end: none is lost before there is a newer one."""
    few = ["--steps", 8, "--batch-size", 2, "--eval-prompts", 2, "--kl-prompts", 2, "--save-pairs"]
    command = ["ipo_online.py", "--setup", setup, *LONG, *few, "--out"]
    call(*command, tmp_path / "whole")
    sys.addaudithook(watch)  # for good: there is no way to remove one
    folder, reached, changes, tries = tmp_path / "killed", 0, 0, 0
    while not (folder / "policy").exists() or (folder / "checkpoint").exists():
        changes, tries = changes + 1, tries + 1
        DOOM.update(thread=threading.get_ident(), folder=str(folder), left=changes)
        try:
            call(*command, folder, "--resume")
        except Killed:
            pass
        finally:
            DOOM.clear()
        kept = [int(path.name) for path in folder.glob("checkpoint/*") if path.name.isdigit()]
        now = 9 if (folder / "policy").exists() else max(kept, default=0)
        assert now >= reached, f"at change {changes} it had {reached} steps, and has {now}"
        reached, changes = now, changes if now == reached else 0
    assert tries > 20 and reached == 9
    assert_equal_runs(folder, tmp_path / "whole", count=8)
    assert (folder / "online_pairs" / "train.jsonl").read_bytes() == (
        tmp_path / "whole" / "online_pairs" / "train.jsonl"
    ).read_bytes()
    assert "this run is finished" in call(*command, folder, "--resume").stdout


def test_ctrl_c_ends_in_one_line_and_the_run_goes_on(setup, tmp_path):
    command = ["ipo_offline.py", "--setup", setup, *LONG, "--steps", 60, "--out"]
    process = begin(*command, tmp_path / "run")
    wait_for((tmp_path / "run" / "checkpoint" / "4").exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 1 and "Traceback" not in errors
    assert (
        errors.splitlines()[-1]
        == f"error: interrupted; the same command with --out {tmp_path}/run --resume goes on where it can"
    )
    call(*command, tmp_path / "run", "--resume")
    call(*command, tmp_path / "whole")
    assert_equal_runs(tmp_path / "run", tmp_path / "whole", count=60)


def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_made(setup, tmp_path):
    """No file may grow beyond 300 kB: the first checkpoint, of 460 kB, cannot be written. With room it goes on."""
    command = [sys.executable, "ipo_offline.py", "--setup", setup, *LONG, "--out", tmp_path / "run"]
    limited = ["bash", "-c", 'ulimit -f 300; exec "$@"', "bash", *map(str, command)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(limited, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: a file could not be read or written" in done.stderr.splitlines()[-1]
    assert not [
        path for path in (tmp_path / "run" / "checkpoint").iterdir() if path.suffix != ".partial"
    ]
    args = (tmp_path / "run" / "args.json").read_text()
    (tmp_path / "run" / "args.json").write_text(re.sub('"torch": "[^"]*"', '"torch": "0.1"', args))
    done = call(*command[1:], "--resume")
    assert f"{tmp_path}/run: was begun with torch 0.1, now {torch.__version__}\n" in done.stdout
    call(*command[1:-1], tmp_path / "whole")
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_two_processes_never_write_one_run(setup, tmp_path):
    command = [
        "ipo_offline.py",
        "--setup",
        setup,
        *LONG,
        "--steps",
        2000,
        "--out",
        tmp_path / "run",
        "--resume",
    ]
    first = begin(*command)
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, first)
    done = call(*command, code=1)
    assert "another process is writing here" in done.stderr and done.stderr.count("\n") == 1
    first.kill()
    first.communicate()
    steps = [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(len(steps)))


def test_other_arguments_are_refused_by_name(setup, runs, tmp_path):
    command = [
        "ipo_offline.py",
        "--setup",
        setup,
        "--out",
        runs["ipo_offline"],
        "--resume",
        "--batch-size",
        4,
    ]
    done = call(
        *command,
        "--beta",
        0.5,
        "--steps",
        4,
        "--eval-every",
        2,
        "--eval-prompts",
        8,
        "--kl-prompts",
        4,
        code=1,
    )
    assert "this run was begun with --steps 3 --beta 0.1; repeat that" in done.stderr
    same = call(
        *command,
        "--steps",
        3,
        "--eval-every",
        2,
        "--eval-prompts",
        8,
        "--kl-prompts",
        4,
        "--eval-batch-size",
        7,
    )
    assert (
        "this run is finished" in same.stdout
    )  # fewer at a time change no number, and may be what memory asks for
    sizes = ["--steps", 3, "--eval-every", 2, "--eval-prompts", 8, "--kl-prompts", 4]
    done = call(*command, "--save-policies", "--compile", *sizes, code=1)
    assert (
        "this run was begun with --no-compile; repeat that" in done.stderr
    )  # as it is typed; --save-policies may change
    assert (
        "--resume needs --out"
        in call("ipo_offline.py", "--setup", setup, "--resume", code=1).stderr
    )
    (tmp_path / "notes.txt").write_text("not a run")
    done = call("ipo_offline.py", "--setup", setup, "--resume", "--out", tmp_path, code=1)
    assert "there is something in this place already, and it is no run" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "responses").mkdir()  # killed before args.json was there
    assert (
        common.choose_folder(ipo_offline.Args(model="m", out=str(tmp_path)), "ipo_offline")
        == tmp_path
    )


def test_another_script_is_refused(setup, tmp_path):
    """Its arguments may all be the same: Best-of-2's are IPO's."""
    args = ipo_offline.Args(setup=str(setup), out=str(tmp_path / "run"))
    common.begin_run(args, tmp_path / "run", "ipo_offline")
    common.LOCKS.pop().release()
    done = call("bo2_offline.py", "--setup", setup, "--out", tmp_path / "run", "--resume", code=1)
    assert "this is a run of ipo_offline.py; go on with that, or name another folder" in done.stderr
    relative = dataclasses.replace(
        args, setup=os.path.relpath(setup), resume=True
    )  # the same start by another name
    assert common.choose_folder(relative, "ipo_offline") == tmp_path / "run"
    for broken in ("{", "[]", '{"script_name": "train"}'):
        (tmp_path / "run" / "args.json").write_text(broken)
        with pytest.raises(
            SystemExit, match="run/args.json: is not what a run wrote; name another folder"
        ):
            common.choose_folder(relative, "ipo_offline")


def test_another_model_in_the_same_place_is_refused(setup, tmp_path):
    """As it is where a setup was prepared anew; by its contents, whatever it is called."""
    model = shutil.copytree(setup / "sft", tmp_path / "sft")
    args = ipo_offline.Args(
        setup=str(setup),
        model=str(model),
        dataset="owner/name",
        out=str(tmp_path / "run"),
        resume=True,
    )
    for _ in range(2):
        common.begin_run(args, tmp_path / "run", "ipo_offline")
        common.LOCKS.pop().release()
    (tmp_path / "link").symlink_to(model)
    common.begin_run(
        dataclasses.replace(args, model=str(tmp_path / "link")), tmp_path / "run", "ipo_offline"
    )
    common.LOCKS.pop().release()
    shutil.copy(setup / "baseline" / "model.safetensors", model)
    with pytest.raises(
        SystemExit, match=f"{model} is not as it was when this run began; put that back"
    ):
        common.begin_run(args, tmp_path / "run", "ipo_offline")
    common.LOCKS.pop().release()


def test_a_damaged_checkpoint_ends_in_one_line(letters, tmp_path):
    """A log that is shorter than it was, a state that is half written: nothing is filled up with zeros."""
    optimizer = torch.optim.AdamW(letters.model.parameters())
    for name in common.LOGS:
        (tmp_path / f"{name}.jsonl").write_text("0123456789\n")
    common.save_checkpoint(tmp_path, 2, letters.model, optimizer)
    (tmp_path / "metrics.jsonl").write_text("0123456789\nmore\n")
    assert common.load_checkpoint(tmp_path, letters.model, optimizer) == 2
    assert (tmp_path / "metrics.jsonl").read_text() == "0123456789\n"
    (tmp_path / "evals.jsonl").write_text("0\n")
    with pytest.raises(
        SystemExit, match="evals.jsonl: is shorter than when .*/checkpoint/2 was made"
    ):
        common.load_checkpoint(tmp_path, letters.model, optimizer)
    assert (tmp_path / "evals.jsonl").read_text() == "0\n"
    (tmp_path / "checkpoint" / "2" / "state.json").write_text("{")
    with pytest.raises(SystemExit, match="checkpoint/2/state.json: is no JSON"):
        common.load_checkpoint(tmp_path, letters.model, optimizer)


@pytest.mark.parametrize("place", ["/proc/run", "FILE/run"])
def test_a_place_that_cannot_be_written_ends_in_one_line(place, setup, tmp_path):
    (tmp_path / "file").write_text("")
    out = place.replace("FILE", str(tmp_path / "file"))
    done = call("ipo_offline.py", "--setup", setup, *LONG, "--out", out, code=1)
    assert (
        "error: a file could not be read or written" in done.stderr and done.stderr.count("\n") == 1
    )


def assert_equal_setups(setup, again):
    for path in setup.rglob("*"):
        if path.is_file() and path.name != "prepare.json":
            assert (again / path.relative_to(setup)).read_bytes() == path.read_bytes(), path
    assert not list(again.glob("*.partial")) and not list(again.glob("*.run"))


def test_an_interrupted_prepare_goes_on(setup, tmp_path, monkeypatch):
    """Killed during each stage in turn, it ends with the same files."""
    again, killed = tmp_path / "again", 0
    command = ["-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out", again]
    for half_made in (
        "untrained_small",
        "sft.partial",
        "golden.partial",
        "proxy.partial",
        "baseline.run/checkpoint/1",
    ):
        process = begin(*command)
        while process.poll() is None and not (again / half_made).exists():
            time.sleep(0.005)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 4  # the last stage takes but a moment, and may have been faster
    kept, train = sorted((again / "baseline.run" / "checkpoint").glob("[0-9]*")), ipo_online.main
    monkeypatch.setattr(
        ipo_online,
        "main",
        lambda args: train(args) if all(map(Path.exists, kept)) else pytest.fail("lost"),
    )
    call(*command)  # goes on with the baseline policy from its checkpoint
    assert_equal_setups(setup, again)


@pytest.mark.skipif(
    KILLS <= 5, reason="prepare is killed at random moments in `make test-all` alone"
)
def test_a_prepare_killed_at_random_moments_goes_on(setup, tmp_path):
    command = [
        "-m",
        "prepare",
        "--seed",
        7,
        "--pairs",
        400,
        *MINIATURE,
        "--out",
        tmp_path / "again",
    ]
    rng, killed = random.Random(1), 0
    for _ in range(KILLS):
        process = begin(*command)
        time.sleep(3 + rng.random() * 9)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it was faster, and is finished
            shutil.rmtree(tmp_path / "again")
    call(*command)
    assert killed >= KILLS // 2
    assert_equal_setups(setup, tmp_path / "again")
