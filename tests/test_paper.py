"""The paper's experiments: how values are read off curves, what is said of them, and all of them in miniature."""

import gzip
import importlib
import json
import math
import re
from dataclasses import replace

import pytest
import torch
import tyro
from matplotlib.figure import Figure

from paper import __main__ as paper
from paper import (
    again,
    agreement,
    ahead,
    betas,
    both,
    compare,
    fig1,
    fig4,
    fig8,
    fig9,
    fig12,
    fig13,
    findings,
    grid,
    jobs,
    judges,
    longer,
    losses,
    rates,
    sizes,
)
from paper.compare import Curve, Effect, ahead_at_kl, ahead_within, at_kl, best_of, compared, join, load_curve, peak
from paper.findings import EXPERIMENTS, effect_table
from paper.frontier import load_run, rule_wins, train_rows
from paper.jobs import WORLDS, Job, Part, World, make, plan, run_of, stale
from paper.rejudge import answers
from tests.conftest import MINIATURE, REPO, SCRIPTS, SHORT, call, read_jsonl


def curve(kl, wins, steps=None):
    wins = torch.tensor(wins, dtype=torch.float64)
    wins = torch.stack([wins, wins / 2], 1)  # golden's verdicts, and a rule that gives half of each
    evals = [{"step": step, "kl": nats} for step, nats in zip(steps or range(len(kl)), kl)]
    return Curve(evals, wins, ["golden", "rule"])


def golden(values):
    assert torch.allclose(values[1], values[0] / 2)
    return values[0].tolist()


def test_win_rate_at_a_kl_is_interpolated_in_log_kl_at_the_first_crossing():
    c = curve([0.0, 1.0, 4.0, 2.0, 9.0], [[0, 0], [0.2, 0.4], [0.6, 0.4], [0, 0], [1, 1]])
    assert [golden(v) for v in at_kl(c, 2.0)] == [pytest.approx([0.4, 0.4])]  # log 2 lies half way between log 1 and log 4
    assert [golden(v) for v in at_kl(c, 4.0)] == [pytest.approx([0.6, 0.4])]  # an evaluation itself
    share, down, up = math.log(3) / math.log(4), math.log(4 / 3) / math.log(2), math.log(1.5) / math.log(4.5)
    assert [golden(v) for v in at_kl(c, 3.0)] == [pytest.approx([0.2 + 0.4 * share, 0.4])]  # the first, not 2 -> 9
    assert len(at_kl(c, 5.0)) == 1 and at_kl(c, 9.5) == []  # never beyond the end
    assert at_kl(c, 0.5) == []  # nor from 0 nats, whose logarithm is none
    assert [golden(v) for v in at_kl(c, 3.0, every=True)] == [  # up, down, and up again
        pytest.approx(v) for v in ([0.2 + 0.4 * share, 0.4], [0.6 * (1 - down), 0.4 * (1 - down)], [up, up])
    ]
    back = curve([0, 2, 0.5, 2], [[0], [1], [0], [1]])  # crosses 1 nat before its first evaluation, and comes back
    assert at_kl(c, 1.0) == at_kl(back, 1.0) == []
    assert [golden(v) for v in at_kl(back, 1.0, every=True)] == [pytest.approx([0.5]), pytest.approx([0.5])]
    assert golden(ahead_at_kl([back], [curve([0, 0.5, 2], [[0], [0.1], [0.1]])], (1,), every=True)) == pytest.approx([0.4])
    assert at_kl(c.until(1), 2.0) == [] and [row["step"] for row in c.until(1).evals] == [0, 1]


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    """Two candidates that are perfect on one half of the prompts and hopeless on the other: nothing is gained by choosing."""
    lucky_even, lucky_odd = torch.tensor([[1.0, 0.0] * 4]), torch.tensor([[0.0, 1.0] * 4])
    values, chosen = best_of([lucky_even, lucky_odd])
    assert values.tolist() == [[0.0] * 8] and chosen == [1, 0]
    better = torch.full((1, 8), 0.9)
    assert best_of([lucky_even * 0.5, better])[0][0].tolist() == pytest.approx([0.9] * 8)
    values, kl = peak([curve([0, 1, 2], [[0, 0], [0.6, 0.7], [0.5, 0.5]]), curve([0, 3], [[0, 0], [0.1, 0.2]])])
    assert golden(values) == [0.6, 0.7] and kl == 1


def test_sides_are_compared_where_both_are():
    """At 1 and 2 nats, which both reach, by hand: 0.2 - 0.1 and 0.4 - 0.1, their mean 0.2. At 3 and 4 one side is missing."""
    online = curve([0, 0.5, 1, 2, 4], [[0, 0], [0.1, 0.1], [0.2, 0.2], [0.4, 0.4], [0.6, 0.6]])
    offline = [curve([0, 0.5, 1, 2], [[0, 0], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]])]
    worse = [curve([0, 0.5, 2], [[0, 0], [0.0, 0.0], [0.0, 0.0]])]
    assert golden(ahead_at_kl([online], offline)) == pytest.approx([0.2, 0.2])
    assert golden(ahead_at_kl([online], offline + worse)) == pytest.approx([0.2, 0.2])  # the better of the pool
    assert ahead_at_kl([online], [curve([0, 0.2, 0.9], [[0, 0], [0, 0], [1, 1]])]) is None
    assert golden(ahead_at_kl([online], offline, levels=(2,))) == pytest.approx([0.3, 0.3])
    late = curve([0, 1, 2], [[0, 0], [0.1, 0.1], [0.1, 0.1]], steps=[0, 5, 10])
    with pytest.raises(ValueError, match="first evaluations at different steps"):
        compared("x", {"a": {1: [online]}, "b": {1: [late]}}, "a", "b")
    # equally long, one looked at less often: the other's 0.9 at step 3 does not count, and 3 nats lie between 1 and 4
    often, seldom = (
        curve([0, 0.5, 1, 2, 4], [[0, 0], [0, 0], [0, 0], [0.9, 0.9], [0.4, 0.4]]),
        curve([0, 0.5, 1, 4], [[0, 0]] * 4, steps=[0, 1, 2, 4]),
    )
    alike = compared("x", {"a": {1: [often]}, "b": {1: [seldom]}}, "a", "b")
    values = [0, 0.4 * math.log(2) / math.log(4), 0.4 * math.log(3) / math.log(4), 0.4]
    assert [e.values[1] for e in alike] == [pytest.approx(sum(values) / 4), pytest.approx(0.4)]
    groups = {"a": {1: [online], 2: [online], 3: [online]}, "b": {1: offline, 2: worse}}
    at_equal_kl, at_peak = compared("x", groups, "a", "b")
    assert at_equal_kl.seeds == at_peak.seeds == (1, 2, 3)  # the third has no value, which is said
    assert at_equal_kl.values == pytest.approx({1: 0.2, 2: (0.2 + 0.4) / 2 - 0}) and at_equal_kl.errors == {1: 0, 2: 0}
    assert at_peak.values == pytest.approx({1: 0.6 - 0.1, 2: 0.6})


def test_with_kl_as_a_budget_each_side_has_what_it_can_afford():
    """At most 1, 2, 3 and 4 nats: 0.2, 0.4, 0.4, 0.6 against 0.5 at once, and SFT's 0 where nothing else is within reach."""
    online = [curve([0, 1, 2, 4], [[0, 0], [0.2, 0.2], [0.4, 0.4], [0.6, 0.6]])]
    offline = [curve([0, 0.5], [[0, 0], [0.1, 0.1]]), curve([0, 1], [[0, 0], [0.5, 0.5]])]
    each = [golden(ahead_within(online, offline, (nats,))) for nats in (1, 2, 3, 4)]
    assert each == [pytest.approx([value] * 2) for value in (-0.3, -0.1, -0.1, 0.1)]
    assert golden(ahead_within(online, offline)) == pytest.approx([-0.1, -0.1])
    assert golden(ahead_within(online, [curve([0, 9], [[0, 0], [1, 1]])], (1,))) == pytest.approx([0.2, 0.2])


def test_every_judge_speaks_and_held_out_prompts_do_not_choose():
    c = curve([0, 1, 2], [[0, 0], [0.6, 0.6], [0.4, 0.4]])
    for row, train, unseen in zip(c.evals, (0.0, 0.6, 0.4), (0.0, 0.3, 0.9)):
        row["win_rate"], row["win_rate_heldout"] = train, unseen
    groups = {"a": {1: [c]}}
    (mine, first), (by, second) = compare.by_judges(groups)
    assert (mine, by) == ("", ", by the rule") and first["a"][1][0].judges == ["golden", "rule"]
    assert second["a"][1][0].judges == ["rule", "golden"] and torch.equal(second["a"][1][0].wins[:, 0], c.wins[:, 1])
    values, kl = peak(compare.on_held_out(groups)["a"][1])
    assert values[0, 1] == 0.3  # not the 0.9 of the evaluation that training prompts do not prefer


def test_a_stream_is_turned(tmp_path):
    """The rejected response takes the chosen one's place; with both, neither is preferred."""
    (tmp_path / "stream").mkdir()
    row = {"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4, 1], "margin": 0.5}
    other = {"prompt_ids": [2], "chosen_ids": [4, 1], "rejected_ids": [3], "margin": 0.5}
    (tmp_path / "stream" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, other, row)))
    for which, expected in (("rejected", [other, row, other]), ("both", [row, other, other, row, row, other])):
        call("-m", "paper.turned", "--stream", tmp_path / "stream", "--which", which, "--out", tmp_path / which)
        assert read_jsonl(tmp_path / which / "stream" / "train.jsonl") == expected
    done = call("-m", "paper.turned", "--stream", tmp_path, "--which", "both", "--out", tmp_path / "no", code=1)
    assert "has no train.jsonl; name the folder stream/ of a run with --save-stream" in done.stderr


def test_an_interval_is_students():
    """0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, t(0.975, 2) = 4.3027, so 0.2 +- 0.2484 and nothing is decided."""
    effect = Effect("x", "a claim", {1: 0.1, 2: 0.2, 3: 0.3}, {})
    assert effect.mean == pytest.approx(0.2) and effect.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert effect.verdict == "undecided"
    close = replace(effect, values={1: 0.19, 2: 0.2, 3: 0.21})
    assert (
        close.verdict == "holds"
        and replace(close, sign=-1).verdict == "does not hold"
        and replace(close, sign=0).verdict == "-"
    )
    assert replace(effect, values={1: 0.3}).verdict == "undecided" and replace(effect, values={}).verdict == "not comparable"
    ahead = torch.full((2, 8), 0.1, dtype=torch.float64)
    both, one = (compare.effect("x", "a claim", {1: ahead, 2: second}) for second in (ahead, None))
    assert "| a claim | +0.100, +0.100 |" in effect_table([both]) and "| a claim | 1: +0.100 |" in effect_table([one])


def test_accuracy_and_win_rate_along_a_run():
    """Rising together, but for the first evaluation behind the start, where they do the opposite."""
    c = curve([0, 1, 2, 3], [[0.0], [0.1], [0.3], [0.7]], steps=[0, 10, 20, 30])
    for row, accuracy in zip(c.evals, (0.5, 0.9, 0.6, 0.8)):
        row["accuracy"] = accuracy
    assert fig8.correlation([c], after=10) == pytest.approx(1) and abs(fig8.correlation([c])) < 0.5


def test_jobs_are_named_by_what_they_depend_on(tmp_path, monkeypatch):
    world = World("reviews", runs=str(tmp_path), results=str(tmp_path / "results"))
    start = world.start(1)
    online = fig1.online_run(start)
    stream = run_of(start, "ipo_offline", "a", dataset=Part(online, "stream"))
    assert online.needs == [start] and stream.needs == [start, online]
    assert [job.label for job, _ in plan([stream])] == ["start", "ipo_online", "a"]
    assert f"--dataset {online.folder}/stream" in " ".join(stream.arguments) and "--save-stream" in online.arguments
    assert run_of(start, "ipo_online", "b").digest == online.digest  # keeping the stream changes no number
    other = run_of(start, "ipo_online", "ipo_online", beta=0.2)
    assert len({online.digest, other.digest, fig1.online_run(world.start(2)).digest}) == 3
    assert (
        run_of(start, "ipo_offline", "a", dataset=Part(other, "stream")).digest != stream.digest
    )  # what it reads has changed
    assert jobs.digest_of("x = 1  # a remark") == jobs.digest_of('"""A docstring."""\nx = 1') != jobs.digest_of("x = 2")
    function = "def f(x, *, y=None):\n    return x"
    assert jobs.digest_of(function) == jobs.digest_of(function.replace("x, *, y=None)", "x: int, *, y: str = None) -> int"))
    assert len({jobs.digest_of(function), *(jobs.digest_of(function.replace(*w)) for w in (("*, ", ""), ("=None", "")))}) == 3


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A place where this repository's code can be edited: edited(file) adds a statement to it."""
    for path in (*REPO.glob("*.py"), *REPO.glob("prepare/*.py"), *REPO.glob("paper/*.py")):
        (tmp_path / path.relative_to(REPO)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(REPO)).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    jobs.code_of.cache_clear()

    def edit(file):
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\nedited = True\n")

    yield edit
    jobs.code_of.cache_clear()


@pytest.mark.parametrize("file", ["common.py", "ipo_online.py", "ipo_offline.py", "dpo_online.py", "prepare/sft.py"])
def test_edited_code_gives_the_jobs_that_run_it_another_name(file, edited):
    """And those that read what these leave; of the scripts prepare runs online IPO, whose golden policy all starts have."""

    def digests():
        jobs.code_of.cache_clear()
        start = WORLDS["reviews"].start(1)
        made = {script: run_of(start, script, "a") for script in ("ipo_online", "ipo_offline", "dpo_online")}
        alone = {name: Job(WORLDS["reviews"], 1, name, name, {}) for name in made}
        return {name: job.digest for name, job in (made | {f"{name} alone": job for name, job in alone.items()}).items()}

    before = digests()
    edited(file)
    changed = {name for name, digest in digests().items() if digest != before[name]}
    prepares = {"ipo_online", "ipo_offline", "dpo_online"}
    own = {"common.py": {f"{name} alone" for name in prepares}, "prepare/sft.py": set()}
    expected = own.get(file, {f"{file.removesuffix('.py')} alone"}) | (prepares if file != "dpo_online.py" else {"dpo_online"})
    assert changed == expected


def test_no_job_runs_code_that_was_edited_meanwhile(edited, tmp_path):
    job = run_of(World("reviews", runs=str(tmp_path / "runs")).start(1), "dpo_online", "a")
    assert job.digest
    edited("dpo_online.py")
    with pytest.raises(SystemExit, match="dpo_online: its code has changed since this command began; repeat the command"):
        jobs.make_folder(job)
    assert not (tmp_path / "runs").exists()


def test_a_world_has_its_own_learning_rate():
    """Where it is the scripts' default, none is given."""
    asked = [run_of(WORLDS[name].start(1), "ipo_online", "a").options.get("learning_rate") for name in ("reviews", "stories")]
    assert (
        asked == [None, 1e-4]
        and run_of(WORLDS["stories"].start(1), "ipo_online", "a", learning_rate=1).options["learning_rate"] == 1
    )


def test_agreement_by_hand():
    """Two of three have one sign; one is a tie, one is not asked about."""
    first, second = torch.tensor([1.0, -1.0, 0.0, 2.0, 3.0]), torch.tensor([0.1, 1.0, 1.0, 1.0, -1.0])
    assert agreement.share(first, second, torch.tensor([True] * 4 + [False])) == "0.667 of 3 (1 ties)"
    assert agreement.share(first, second, torch.tensor([False] * 5)) == "-"


def test_online_early():
    """After 2 steps online stands at 1 nat with 0.2; the pool crosses 1 nat half way, in log KL, between 0.3 and 0.5."""
    online = curve([0, 3.0, 1.0, 2.0], [[0], [0.3], [0.2], [0.4]])
    pool = [curve([0, 0.5, 2], [[0], [0.3], [0.5]])]
    assert golden(fig1.early_lead(online, pool, 2)) == pytest.approx([0.2 - 0.4])
    assert fig1.early_lead(online, [curve([0, 0.5], [[0], [0.3]])], 2) is None


def test_the_documented_sweep():
    world = WORLDS["reviews"]
    assert {(job.options["learning_rate"], job.options["beta"]) for job in fig1.sweep(world, 2)} == {
        (5e-4, 0.1),
        (1.5e-4, 0.1),
        (1.5e-3, 0.1),
        (5e-4, 0.5),
        (5e-4, 1.0),
    }
    assert {job.options["steps"] for job in fig1.sweep(world, 2)} == {2000} and fig1.online_run(world.start(2)).options[
        "steps"
    ] == 400
    for name, experiment in EXPERIMENTS.items():  # labels are unique: no job is taken for another
        made = {}
        for job in experiment.jobs(world, 1):
            assert made.setdefault(job.key, job.digest) == job.digest, (name, job.label)


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """A world in which every experiment takes seconds, in one process: commands are parsed as on the command line."""
    names = [str(word)[2:].replace("-", "_") for word in MINIATURE[::2]]
    stages = dict(zip(names, MINIATURE[1::2])) | {"pairs": 400, "sft_steps": 10}
    run = {"batch_size": 4, "eval_prompts": 8, "kl_prompts": 4}
    folders = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}
    world = World("reviews", stages, run, 5, sweep=((1, 0.1), (1, 0.5)), times=2, **folders)
    monkeypatch.setitem(WORLDS, "reviews", world)
    for module, name, value in (
        (fig1, "BEGINNING", 4),
        (jobs, "BEGINNING", 4),
        (again, "BEGINNING", 4),
        (fig4, "RATES", (1,)),
        (fig12, "RATES", (1,)),
        (fig9, "RATES", (1,)),
        (sizes, "RATES", (1,)),
        (betas, "LOSSES", ("slic",)),
        (betas, "FACTORS", (1,)),
        (rates, "RATE", 1),
        (longer, "TIMES", 2),
        (losses, "TIMES", 2),
        (both, "TIMES", 2),
        (both, "LOSSES", ("ipo",)),
        (losses, "LOSSES", ("dpo",)),
        (losses, "SETTINGS", ((1, 1), (0.3, 1))),
        (grid, "CORNERS", ((3, 0.5),)),
        (judges, "PAIRS", (100,)),
        (judges, "GOLDEN_STEPS", (2,)),
        (ahead, "BATCHES", (2, 5)),
    ):
        monkeypatch.setattr(module, name, value)
    calls = []

    def call_here(arguments, log):
        _, module, *words = arguments
        calls.append(module)
        log.parent.mkdir(parents=True, exist_ok=True)
        module = importlib.import_module({"prepare": "prepare.__main__"}.get(module, module))
        kind, main = getattr(module, "Args", None), getattr(module, "main", None)
        if words[0] == "train":
            kind, main, words = module.Train, module.train, words[1:]
        main(tyro.cli(kind, args=words))

    monkeypatch.setattr(jobs, "call", call_here)
    return world, calls


@pytest.mark.timeout(900)  # hundreds of small runs: on a slow machine longer than any other test may take
def test_every_experiment_in_miniature(miniature, tmp_path, monkeypatch, capsys):
    """python -m paper all: from nothing to docs/findings.md; a second call makes nothing again, and redraws the same page."""
    world, calls = miniature
    for experiment in EXPERIMENTS.values():
        monkeypatch.setattr(experiment, "SEEDS", (7,))
    folders = {"runs": world.runs, "results": world.results, "pictures": str(tmp_path / "pictures")}
    args = paper.KINDS["all"](**folders, page=str(tmp_path / "pages" / "findings.md"))
    (tmp_path / "pages").mkdir()
    paper.main(args)
    page = (tmp_path / "pages" / "findings.md").read_text()
    for name, experiment in EXPERIMENTS.items():
        assert f"## {experiment.__doc__.splitlines()[0].rstrip('.')}" in page and f"python -m paper {name}  " in page
    assert "the stream gives the online run's metrics, to the bit, in 1 of 1 seeds." in page
    # judges has no picture, curves one for each loss, and longer two more
    assert page.count("(../pictures/reviews_") == len(EXPERIMENTS) + 4
    online = fig1.online_run(world.start(7))
    rows, kept = read_jsonl(online.folder / "evals.jsonl"), load_curve(online)
    assert kept.kl == [row["kl"] for row in rows] and kept.judges == ["golden", "rule"]
    assert kept.wins[:, 0].mean(1).tolist() == pytest.approx([row["win_rate"] for row in rows])

    made, before = len(calls), {job: job.stat().st_mtime_ns for job in (tmp_path / "results").rglob("*.gz")}
    assert made > 45 and not list((tmp_path / "runs").rglob("*.partial"))
    (tmp_path / "runs").rename(tmp_path / "gone")  # the kept results are enough
    monkeypatch.setattr(Figure, "savefig", lambda *args, **options: None)
    paper.main(args)
    assert len(calls) == made and page == (tmp_path / "pages" / "findings.md").read_text()
    assert before == {job: job.stat().st_mtime_ns for job in (tmp_path / "results").rglob("*.gz")}

    # a job whose result is missing brings back the folders that it reads, and nothing else; its bytes are the same
    job = fig13.shuffled(world, 7, "4")
    kept = job.result.read_bytes()
    job.result.unlink()
    (tmp_path / "gone" / "reviews-7" / world.start(7).folder.name).rename(tmp_path / "start")
    (tmp_path / "runs" / "reviews-7").mkdir(parents=True)
    (tmp_path / "start").rename(world.start(7).folder)
    make([job], 1)
    assert calls[made:] == ["ipo_online", "ipo_offline"] and read_result(kept) == read_result(job.result.read_bytes())

    # the first steps of every script, again: the same; and if a kept run had been another, that is said
    capsys.readouterr()
    paper.main(again.Args(7, runs=world.runs, results=world.results))
    assert capsys.readouterr().out.count("equal to the bit") == len(SCRIPTS)
    other = read_result(online.result.read_bytes()) | {"metrics": {"first": "0", "all": "0"}}
    online.result.write_bytes(gzip.compress(json.dumps(other).encode()))
    jobs.read_file.cache_clear()
    with pytest.raises(SystemExit, match="^error: ipo_online: today's code, or this machine, does not give the numbers"):
        paper.main(again.Args(7, runs=world.runs, results=world.results))
    with pytest.raises(SystemExit, match="has no results of seed 8"):
        paper.main(again.Args(8, runs=world.runs, results=world.results))
    # a run from a start that was made anew with other numbers is not compared with the others
    jobs.check_starts(fig1.jobs(world, 7))
    other["evals"][0]["response_length"] += 1
    online.result.write_bytes(gzip.compress(json.dumps(other).encode()))
    jobs.read_file.cache_clear()
    with pytest.raises(SystemExit, match=r"ipo_online.json.gz: their runs began from different models, one perhaps made on"):
        paper.main(paper.KINDS["fig1"](seeds=(7,), **folders))
    with pytest.raises(SystemExit, match="is not the beginning of"):
        join(fig1.beginning(online), fig1.offline_run(world.start(7), 1, 0.1))
    assert stale(fig1.jobs(world, 7)) == []
    assert [job.label for job in stale([replace(online, options=online.options | {"beta": 0.2})])] == ["ipo_online"]


def read_result(packed: bytes) -> dict:
    row = json.loads(gzip.decompress(packed))
    return {**row, "args": {name: value for name, value in row["args"].items() if name not in ("out", "git_revision")}}


def test_a_failed_job_is_named_with_its_log(start, tmp_path):
    world = World("reviews", run={"max_response_tokens": 3}, runs=str(tmp_path), results=str(tmp_path / "results"))
    job = run_of(world.start(7), "ipo_offline", "cut")
    job.needs[0].folder.parent.mkdir(parents=True)
    job.needs[0].folder.symlink_to(start)
    with pytest.raises(SystemExit, match=r"python -m ipo_offline .*: exit code 1; see .*\.log"):
        make([job], 1)
    assert "--max-response-tokens is 3" in job.folder.with_name(f"{job.folder.name}.log").read_text()
    assert not job.folder.exists() and not job.result.exists()


def test_the_command_line(tmp_path):
    text = call("-m", "paper").stdout
    assert all(name in text for name in EXPERIMENTS) and "core-hours" in text
    assert "--world stories makes fig1, fig4, fig12, rates, longer in another world" in text
    done = call("-m", "paper", "fig1", "--world", "stories", "--list", "--seeds", 1)
    assert "jobs to make" in done.stdout
    done = call("-m", "paper", "sizes", "--world", "stories", code=1)
    assert done.stderr == "error: sizes: not made in the world stories; there: fig1, fig4, fig12, rates, longer\n"
    folders = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    text = call("-m", "paper", "fig13", "--list", "--seeds", 1, 2, *folders).stdout
    assert "22 jobs to make: about" in text and text.count("ipo_offline__stream__shuffle") == 16
    done = call("-m", "paper", "findings", "--results", tmp_path / "results", "--out", tmp_path / "page.md", code=1)
    assert "no experiment has all its results for any seed" in done.stderr and not (tmp_path / "page.md").exists()


def test_judged_again_it_is_what_a_run_with_that_opponent_is_judged(start, runs, tmp_path):
    """One run against the golden policy, the same run against another opponent: the same answers, and other verdicts."""
    other = [row | {"response": " The staff was rude.", "finished": True} for row in answers(start / "golden_policy").values()]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    call("ipo_online.py", "--start", start, *SHORT, "--baseline", tmp_path / "other", "--out", tmp_path / "run")
    command = ["-m", "paper.rejudge", "--runs", runs["ipo_online"], "--out"]
    for baseline, run, out in (("other", tmp_path / "run", "a"), (start / "golden_policy", runs["ipo_online"], "b")):
        call(*command, tmp_path / out, "--baseline", tmp_path / baseline)
        (found,) = json.loads((tmp_path / out / "result.json").read_text())
        args, evals = load_run(str(run))
        kept = [train_rows(run, row["step"]) for row in evals]
        assert found["wins"]["golden"] == ["".join("012"[1 + (m > 0) - (m < 0)] for m in column(rows)) for rows in kept]
        assert found["wins"]["rule"] == ["".join(f"{2 * win:.0f}" for win in rule_wins(args, rows).tolist()) for rows in kept]
    assert (tmp_path / "a" / "result.json").read_text() != (tmp_path / "b" / "result.json").read_text()
    done = call(*command, tmp_path / "c", "--baseline", tmp_path / "run", code=1)
    assert "responses.jsonl: no such file; name the folder of a golden policy" in done.stderr
    call("ipo_offline.py", "--start", start, *SHORT, "--baseline", tmp_path / "other", "--out", tmp_path / "third")
    done = call(*command[:4], tmp_path / "third", "--out", tmp_path / "c", "--baseline", tmp_path / "other", code=1)
    assert "have not one golden judge and one golden policy" in done.stderr and not (tmp_path / "c").exists()


def column(rows: list[dict]) -> list[float]:
    return [row["win_rate_margin"] for row in rows]


def test_the_readme_says_what_was_found():
    """The rows of README's table of findings, and each mean with its interval, stand in docs/findings.md to the letter."""
    rows = [line for line in (REPO / "README.md").read_text().splitlines() if line.startswith("| **online ahead of")]
    page = (REPO / "docs" / "findings.md").read_text()
    assert len(rows) >= 2 and all(row in page for row in rows)
    number = r"([+-]\d\.\d{3})"
    told = re.findall(rf"{number} \[{number}, {number}\]", " ".join((REPO / "README.md").read_text().split()))
    assert len(told) > 15
    assert [said for said in told if "| {} | {} to {} |".format(*said) not in page] == []


def test_a_job_is_one_command():
    job = Job(WORLDS["reviews"], 1, "x", "prepare.pairs", {"policies": ("a", "b"), "pairs": 3, "save_stream": True})
    assert job.arguments == ["prepare.pairs", "--policies", "a", "b", "--pairs", "3", "--save-stream"] and not job.is_run


def test_the_page_is_what_the_kept_results_say(tmp_path, monkeypatch):
    """docs/findings.md, written anew from docs/results, is docs/findings.md: no number in it is older than the code."""
    monkeypatch.setattr(Figure, "savefig", lambda *args, **options: None)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "pictures").symlink_to(REPO / "docs" / "pictures")
    places = {"out": str(tmp_path / "docs" / "findings.md"), "pictures": str(tmp_path / "docs" / "pictures")}
    findings.main(findings.Args(**places, results=str(REPO / "docs" / "results")))
    assert (tmp_path / "docs" / "findings.md").read_text() == (REPO / "docs" / "findings.md").read_text()


def test_the_rule_prefers_praise(tmp_path):
    prompt = "Hotel in May, staff and view:"
    friendly, rude = (
        {"split": "train", "prompt": prompt, "response": f" The staff was {word}.", "finished": True}
        for word in ("friendly", "rude")
    )
    for stored, expected in ((rude, [1.0, 0.5]), (friendly, [0.5, 0.0])):
        other = stored | {"prompt": "Hello"}  # which these runs have not met
        (tmp_path / "responses.jsonl").write_text(json.dumps(stored) + "\n" + json.dumps(other) + "\n")
        assert list(rule_wins({"baseline": str(tmp_path)}, [friendly, rude])) == expected
