"""Nothing lost: a run that was killed, interrupted or ran out of disk continues, and ends as if
nothing had happened. What would change its numbers is refused."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import patch

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import common
import ipo_offline
import ipo_online
from prepare.preference_model import train_preference_model
from prepare.sft import train_sft
from tests.conftest import PREPARE, REPO, SHORT, call, end_process, read_jsonl, stage

FEW = "--batch-size 4 --eval-prompts 8 --kl-prompts 4 --eval-at 4 --eval-every 4".split()
LONG = ["--steps", 24, *FEW]
KILLS = int(os.environ.get("TANDEM_KILLS", 5))
FILES = "metrics.jsonl", "evals.jsonl", "policy/model.safetensors", "responses/0.jsonl"


def begin(*command, **environment):
    """A process that hears Ctrl-C, which a shell's background jobs and their children ignore."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPO}
    options |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, env=os.environ | environment, **options)


def wait_for(sign, process):
    """Until sign() is true; the process must not end before."""
    while not sign():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def killed(process) -> bool:
    """Kill it; whether that was before its end."""
    process.kill()
    return process.communicate() and process.returncode == -signal.SIGKILL


def steps_taken(folder, since: float) -> int:
    """How many steps a run has logged; 0 until a process begun at `since` has logged one."""
    timings = folder / "timings.jsonl"
    new = timings.exists() and timings.stat().st_mtime > since
    return timings.read_text().count("\n") if new else 0


def checkpoints(folder) -> list[int]:
    return [int(path.name) for path in folder.glob("checkpoint/*") if path.name.isdigit()]


def assert_equal_runs(folder, other, names=FILES):
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("metrics", "timings"):
        steps = [row["step"] for row in read_jsonl(folder / f"{name}.jsonl")]
        assert steps == list(range(len(read_jsonl(other / "metrics.jsonl"))))
    assert not [*folder.rglob("*.partial"), *folder.glob("checkpoint")]


@pytest.mark.timeout(60 * KILLS)
def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(setup, tmp_path):
    """kill -9, some before the first step, most amid the steps; all calls but one are the same."""
    whole = ["ipo_online.py", "--setup", setup, *LONG, "--out", tmp_path / "whole"]
    call(*whole)
    folder, rng, reached = tmp_path / "killed", random.Random(0), [0]
    command = [*whole[:-1], folder, "--resume"]
    for kill in range(KILLS):
        began, process = time.time(), begin(*command)
        # one to nine steps after the last checkpoint, and a part of a step; or while it loads
        step = reached[-1] + rng.randint(1, 9) if kill % 5 else 0
        while process.poll() is None and steps_taken(folder, since=began) < step:
            time.sleep(0.005)
        time.sleep(rng.random() * (0.05 if step else 4))
        if not killed(process):  # it was faster, and is finished
            shutil.rmtree(folder)
        reached.append(max(checkpoints(folder), default=0))
    call(*command)
    assert len(set(reached)) > 2, reached
    assert_equal_runs(folder, tmp_path / "whole")


class Killed(BaseException):
    """Nothing catches it."""


DOOM = {}  # thread: who dies; folder: whose changes count; left: how many come before the end


def watch(event: str, args: tuple) -> None:
    """Python calls this before it opens, renames or removes; at the end all of these fail."""
    if not DOOM or DOOM["thread"] != threading.get_ident() or not args:
        return
    removes = event in ("os.remove", "os.rmdir")
    writes = event == "open" and not {"w", "a", "x", "+"}.isdisjoint(args[1] or "")
    changes = removes or writes or event == "os.rename"
    within = str(args[0]).startswith(DOOM["folder"])
    within |= removes and args[1] >= 0  # shutil.rmtree removes by names within an open folder
    if changes and within and not str(args[0]).endswith(".lock"):
        DOOM["left"] -= 1
        if DOOM["left"] < 0:
            if writes:  # then it has opened the file already, and written nothing
                thread, DOOM["thread"] = DOOM["thread"], None
                open(*args[:2]).close()
                DOOM["thread"] = thread
            raise Killed


def test_killed_before_any_change_of_a_file_it_keeps_what_it_had(setup, tmp_path):
    """One change more at each try since the last checkpoint: none is lost before there is a newer
    one. Batches are sampled five at a time; no checkpoint is written between two samplings."""
    command = ["ipo_online.py", "--model", setup / "sft", "--proxy", setup / "proxy", "--dataset"]
    command += [setup / "d_golden" / "test.jsonl", "--eval-prompts", 2, "--kl-prompts", 2]
    command += "--steps 11 --batch-size 2 --sync-every 5 --eval-every 50 --eval-at 2 5 10".split()
    command += ["--save-pairs", "--out"]
    call(*command, tmp_path / "whole")
    sys.addaudithook(watch)  # for good: there is no way to remove one
    folder, reached, changes, seen = tmp_path / "killed", 0, 0, []
    while not (folder / "policy").exists() or (folder / "checkpoint").exists():
        changes += 1
        doom = {"thread": threading.get_ident(), "folder": str(folder), "left": changes}
        with contextlib.suppress(Killed), patch.dict(DOOM, doom):
            call(*command, folder, "--resume")
        seen += [steps for steps in [sorted(checkpoints(folder))] if steps not in seen]
        now = 11 if (folder / "policy").exists() else max(checkpoints(folder), default=0)
        assert now >= reached, f"at change {changes} it had {reached} steps, and has {now}"
        reached, changes = now, changes if now == reached else 0
    assert seen == [[], [5], [5, 10], [10]]
    assert_equal_runs(folder, tmp_path / "whole", [*FILES, "online_pairs/train.jsonl"])


def test_stopped_out_of_disk_and_moved_it_ends_as_if_nothing_had_happened(setup, tmp_path):
    """A second process is refused meanwhile, Ctrl-C and a full disk end in one line, the setup and
    the run lie elsewhere, torch was another one: what was learnt is kept, and the end the same."""
    first = shutil.copytree(setup, tmp_path / "setup")
    command = ["ipo_offline.py", *LONG, "--resume", "--setup"]
    run, process = tmp_path / "run", begin(*command, first, "--out", tmp_path / "run")
    wait_for(lambda: checkpoints(run), process)
    process.send_signal(signal.SIGSTOP)
    done = call(*command, first, "--out", run, code=1)
    assert done.stderr.startswith(f"error: --out {run}: another process is writing here")
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    told = "error: interrupted; repeat the command to continue, a run's with --resume"
    assert (process.returncode, errors.splitlines()[-1]) == (1, told) and "Traceback" not in errors
    kept = max(checkpoints(run))
    size = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (300_000, 600_000):  # bytes; the model has more, or else the optimizer's state
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, size[1]))
        try:
            errors = call(*command, first, "--out", run, code=1).stderr.splitlines()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, size)
        assert "error: " in errors[-1] and "a file could not be" in errors[-1]
        assert checkpoints(run) == [kept]
    first.rename(tmp_path / "elsewhere")
    moved = run.rename(tmp_path / "moved")
    args = moved / "args.json"
    args.write_text(args.read_text().replace(torch.__version__, "0.1"))
    done = call(*command, tmp_path / "elsewhere", "--out", moved)
    assert f"torch was 0.1, is {torch.__version__}; numbers may differ\n" in done.stdout
    call(*command, setup, "--out", tmp_path / "whole")
    assert_equal_runs(moved, tmp_path / "whole")
    events = EventAccumulator(str(moved / "tandem")).Reload()  # no step is there twice
    assert [event.step for event in events.Scalars("metrics/loss")] == list(range(24))
    assert [event.step for event in events.Scalars("evals/kl")] == list(range(0, 25, 4))


def test_other_arguments_and_another_script_are_refused_by_name(setup, runs):
    run, same = runs["ipo_offline"], ["--setup", setup, *SHORT, "--resume", "--out"]
    done = call("ipo_offline.py", *same, run, "--beta", 0.3, "--steps", 4, code=1)
    told = "steps was 3, is 4; beta was 0.1, is 0.3: repeat the run's own, or name another folder"
    assert done.stderr == f"error: --out {run}: {told}\n"
    done = call("bo2_offline.py", *same, run, code=1)  # its arguments are all the same
    assert f"--out {run}: script was ipo_offline, is bo2_offline: " in done.stderr
    done = call("ipo_offline.py", *same, run, "--eval-batch-size", 7, "--save-policies")
    assert "this run is finished" in done.stdout  # no number depends on these
    done = call("ipo_offline.py", *same, run, "--micro-batch-size", 7)  # where memory ran out
    assert "micro_batch_size was 16, is 7; numbers may differ\n" in done.stdout


def test_other_models_data_and_prompts_in_the_same_place_are_refused(setup, tmp_path):
    """By their contents, as where a setup is prepared again. So is a damaged args.json."""

    def begin_again(setup, text="a"):
        args = ipo_offline.Args(setup=str(setup), out=str(tmp_path / "run"), resume=True)
        common.check_args(args, "ipo_offline", ("model", "dataset"))
        end_process()
        return common.begin_run(args, "ipo_offline", [{"text": text}])

    copy, was = shutil.copytree(setup, tmp_path / "setup"), begin_again(setup)
    for name, part in common.PARTS.items():
        file = min(path for path in (copy / part).iterdir() if path.is_file())
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        with pytest.raises(SystemExit, match=f"run: {name}_sha256 was [0-9a-f]*, is [0-9a-f]*: "):
            begin_again(copy)
        file.write_bytes(content)
    with pytest.raises(SystemExit, match="run: prompts_sha256 was .*, is "):  # by their template
        begin_again(copy, text="b")
    assert begin_again(copy) == was
    for broken in ("{", "3", '{"steps": 3}'):
        (tmp_path / "run" / "args.json").write_text(broken)
        with pytest.raises(SystemExit, match="run/args.json: is not what a run wrote"):
            begin_again(copy)


def test_a_damaged_checkpoint_or_log_ends_in_one_line(setup, tmp_path):
    command = ["ipo_offline.py", "--setup", setup, *LONG, "--resume", "--out", tmp_path]
    process, metrics = begin(*command), tmp_path / "metrics.jsonl"
    wait_for(lambda: checkpoints(tmp_path), process)
    assert killed(process)
    last = tmp_path / "checkpoint" / str(max(checkpoints(tmp_path)))
    damages = [
        (last / "model.safetensors", lambda content: content[:230_000], "could not be read"),
        (last / "optimizer.bin", lambda content: content[:470_000], "checkpoint is damaged"),
        (last / "optimizer.bin", lambda content: bytes(len(content)), "checkpoint is damaged"),
        (last / "optimizer.bin", lambda content: b"", "could not be read"),
        (metrics, lambda content: content[: content.index(b"\n") + 1], "has 1 steps, its checkp"),
        (metrics, lambda content: b"\0" + content, "line 1 is not what a run wrote"),
    ]
    for file, damage, told in damages:
        content = file.read_bytes()
        file.write_bytes(damage(content))
        errors = call(*command, code=1).stderr
        assert told in errors and errors.count("\n") == 1
        file.write_bytes(content)
    metrics.rename(tmp_path / "kept")
    assert "metrics.jsonl: has 0 steps, its checkpoint" in call(*command, code=1).stderr
    (tmp_path / "kept").rename(metrics)
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 9')  # half a line, as a kill may leave
    assert "wrote" in call(*command).stdout


def test_a_place_that_cannot_be_written_ends_in_one_line(setup):
    for place in ("/proc/run", setup / "prepare.json" / "run"):
        done = call("ipo_offline.py", "--setup", setup, *LONG, "--out", place, code=1)
        assert "error: a file could not be" in done.stderr and done.stderr.count("\n") == 1


DIVERGES = [  # steps, and what a run, SFT and a preference model say
    (1, "step 1: the KL to SFT is", "-log pi of a token is", "a score that is no finite number"),
    (3, "step 1: the loss is", "step 1: loss", "step 1: loss or gradient is no finite number"),
]


@pytest.mark.parametrize("steps, run, sft, preference", DIVERGES)
def test_what_is_not_finite_is_never_kept(steps, run, sft, preference, setup, tmp_path):
    """Neither a run's policy nor a stage of prepare, whether a step follows or not."""
    out, words = tmp_path / "run", ["--steps", steps, "--learning-rate", 1e39, *FEW, "--out"]
    done = call("ipo_online.py", "--setup", setup, *words, out, code=1)
    assert run in done.stderr and not [*out.glob("checkpoint"), *out.glob("policy")]
    made = setup / "sft", setup / "d_golden", tmp_path / "model"
    with pytest.raises(SystemExit, match=sft):
        stage(train_sft, *made, sft_steps=steps, sft_learning_rate=1e39)
    with pytest.raises(SystemExit, match=preference):
        stage(train_preference_model, *made, steps, 1, preference_learning_rate=1e39)
    assert not made[-1].exists()


def assert_equal_setups(setup, again):
    for path in setup.rglob("*"):
        if path.is_file() and path.name != ".lock":
            assert (again / path.relative_to(setup)).read_bytes() == path.read_bytes(), path
    assert not [*again.glob("*.partial"), *again.glob("*.run")]


def test_an_interrupted_prepare_continues(setup, tmp_path, monkeypatch):
    """Killed in each stage in turn, it ends with the same files."""
    again, kills = tmp_path / "again", 0
    for made in ("untrained_golden", "sft", "golden", "proxy", "baseline.run/checkpoint/1"):
        process, files = begin(*PREPARE, again), (again / made, again / f"{made}.partial")
        while process.poll() is None and not any(file.exists() for file in files):
            time.sleep(0.001)
        kills += killed(process)
    assert kills >= 4  # the last stage takes but a moment, and may have been faster
    kept, real, begun = checkpoints(again / "baseline.run"), ipo_online.begin_run, []
    monkeypatch.setattr(ipo_online, "begin_run", lambda *a: begun.append(real(*a)) or begun[-1])
    call(*PREPARE, again)
    assert all(last == max(kept, default=0) for last, _ in begun)
    assert_equal_setups(setup, again)


@pytest.mark.skipif(KILLS <= 5, reason="prepare is killed at random moments in `make test-all`")
@pytest.mark.timeout(60 * KILLS)
def test_a_prepare_killed_at_random_moments_continues(setup, tmp_path):
    rng, faster = random.Random(1), 0
    for _ in range(KILLS):
        process = begin(*PREPARE, tmp_path / "again")
        time.sleep(3 + rng.random() * 9)
        if not killed(process):  # it was faster, and is finished
            shutil.rmtree(tmp_path / "again")
            faster += 1
    call(*PREPARE, tmp_path / "again")
    assert faster <= KILLS // 2
    assert_equal_setups(setup, tmp_path / "again")
