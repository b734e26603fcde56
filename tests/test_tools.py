"""The pages of scripts and of runs lose nothing, explain every difference, and need no network."""

import importlib.util
import itertools
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from tests.conftest import REPO, SCRIPTS, call, read_jsonl, write_jsonl
from tools import diff, report

RENEW = "run `python tools/diff.py --all`, and add a reason to REASONS where a difference has none"
LINES = {script: diff.read_lines(REPO / f"{script}.py") for script in SCRIPTS}


class Page(HTMLParser):
    """A page as a browser takes it: its text, and the code on each side. It loads nothing."""

    def __init__(self, path):
        super().__init__()
        self.html, self.open, self.words = path.read_text(), [], []
        self.code, self.side = {"l": [], "r": []}, []
        self.feed(self.html)
        self.text = " ".join(" ".join(self.words).split())
        ids = re.findall(r'\bid="(.*?)"', self.html)
        assert not self.open and len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="|url\()#?(.*?)[")]', self.html)) <= set(ids)
        assert not re.search("<script|<link|<img|<iframe|@import|src=", self.html)

    def handle_starttag(self, tag, attributes):
        self.open += [tag] * (tag != "meta")
        if number := dict(attributes).get("data-n"):
            self.side = self.code[dict(attributes)["class"]]
            self.side.append("")
            assert number == str(len(self.side))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.side = [] if tag == "code" else self.side

    def handle_data(self, data):
        self.words += [data] * (self.open[-1:] != ["style"])
        if self.side:
            self.side[-1] += data


def changes(left, right):
    return [section for section in diff.compare(left, right) if section.kind == "change"]


def side_by_side(tmp_path, left, right, names=("left.py", "right.py")):
    diff.write_diff(tmp_path / "page.html", names, left, right)
    return Page(tmp_path / "page.html")


def test_every_difference_of_two_scripts_has_a_reason_and_no_reason_is_idle():
    pairs = [(a, b, changes(LINES[a], LINES[b])) for a, b in itertools.combinations(SCRIPTS, 2)]
    bare = [(a, b, c.rows) for a, b, found in pairs for c in found if not c.reasons]
    assert not bare, f"lines, from 0, that differ without a reason: {RENEW}"
    said = {why for _, _, found in pairs for change in found for why in change.reasons}
    assert said == set(diff.REASONS.values())
    # what a reader has written is not explained
    before = LINES["ipo_online"]
    after = [line.replace("weight_decay=0.0", "weight_decay=0.1") for line in before]
    (change,) = changes(before, after)
    assert change.reasons == [] and change.rows == [(change.rows[0][0],) * 2]
    assert changes(["area = math.pi * r ** 2"], ["area = math.pi * r * r"])[0].reasons == []


def test_the_pages_in_docs_are_those_of_the_scripts(tmp_path):
    for a, b in diff.PAIRS:
        page = side_by_side(tmp_path, LINES[a], LINES[b], (f"{a}.py", f"{b}.py"))
        assert page.html == (REPO / "docs" / "diffs" / f"{a}--{b}.html").read_text(), RENEW
        assert page.code == {"l": LINES[a], "r": LINES[b]}  # nothing is lost
        assert all(" ".join(c.reasons) in page.text for c in changes(LINES[a], LINES[b]))
    assert len(list((REPO / "docs" / "diffs").iterdir())) == len(diff.PAIRS)


def test_lines_that_are_alike_stand_side_by_side_with_marks(tmp_path):
    left = ["clock, own = [now()], share(n)", "chosen = [pairs[i] for i in own]", "margins = old"]
    right = ["clock = [now()]", "first = sample()", "chosen = [y1 if m else y2]", "extra()"]
    assert diff.align(left, right) == [(0, 0), (None, 1), (1, 2), (2, None), (None, 3)]
    left = [f"line_{i} = {i}" for i in range(40)]
    right = [line.replace("line_20 = 20", "line_20 = 21  # new") for line in left]
    html = side_by_side(tmp_path, left, right).html
    assert re.findall("<mark>(.*?)</mark>", html) == ["20", "21  # new"]
    assert re.findall(r"<summary>(\d+) lines", html) == ["17", "16"]


def test_code_is_text_whatever_it_looks_like(tmp_path):
    left = ["\ufeff", "x = '<script>alert(1)</script>' & 1", "\tfoo( ", "", "\x0c", "é\u2028"]
    right = [*left[:2], "bar", *left[3:], ""]
    page = side_by_side(tmp_path, left, right, names=("<b>.py", "b.py"))
    assert page.code == {"l": left, "r": right} and "<b>.py" in page.text


def make(folders, tmp_path, **options):
    out = tmp_path / "report.html"
    report.main(report.Args(tuple(map(str, folders)), out=str(out), **options))
    return Page(out)


def change_rows(path, change):
    write_jsonl(path, [row | change(row) for row in read_jsonl(path)])


@pytest.fixture
def pair(runs, tmp_path):
    return [shutil.copytree(runs[f"ipo_{side}"], tmp_path / side) for side in ("offline", "online")]


def test_a_report_tells_what_the_runs_say(runs, tmp_path):
    folders = [runs[f"ipo_{mode}"] for mode in ("offline", "online", "hybrid")]
    page = make(folders, tmp_path, prompts=3, nats=(0.01, 1.0))
    for folder in folders:
        last = read_jsonl(folder / "evals.jsonl")[-1]
        for name, form in (("kl", ".2f"), ("win_rate", ".3f"), ("win_rate_heldout", ".3f")):
            assert f"{last[name]:{form}} ± {last[f'{name}_stderr']:{form}}" in page.text
        for row in read_jsonl(folder / "responses" / "3.jsonl")[:3]:
            word = "won" if row["win_rate_margin"] > 0 else "(lost|tie)"
            told = re.escape(" ".join((row["response"].strip() or "(nothing)").split()))
            told = rf"{folder.name} , step 3, {last['kl']:.2f} nats {told}( \(cut\))?"
            assert row["prompt"] in page.text and "3 of 3" in page.text
            assert re.search(f"{told} the golden preference model: {word}", page.text)
    drawings = re.findall("<svg.*?</svg>", page.html, re.S)
    colors = [run.color for run in report.frontier.load_runs(tuple(map(str, folders)))]
    assert len(drawings) == 7 and all(color in svg for color in colors for svg in drawings)
    assert make(folders, tmp_path, prompts=3, nats=(0.01, 1.0)).html == page.html


def test_what_a_model_writes_is_text_and_arguments_that_differ_come_first(pair, tmp_path):
    attack = "<script>alert(1)</script></div><b>&amp; $x_1$"
    for path in (pair[1] / "responses").iterdir():
        change_rows(path, lambda row: {"response": attack})
    args = json.loads((pair[1] / "args.json").read_text()) | {"beta": 0.25, "model_sha256": "<i>"}
    (pair[1] / "args.json").write_text(json.dumps(args))
    page = make([pair[0], pair[1].rename(tmp_path / "<b>online&")], tmp_path)
    assert all(told in page.text for told in (attack, "<b>online&", "runs have not one setup"))
    told = ["In these they differ", "shuffle all not in this script", "the same in all"]
    places = [page.text.index(text) for text in [*told, "learning_rate 0.0005 0.0005"]]
    assert places == sorted(places) and "beta 0.1 0.25" in page.text[places[0] : places[2]]


@pytest.mark.parametrize("gone, pictures", [("win_rate", 7), (("win_rate", "proxy"), 5)])
def test_without_golden_the_proxy_serves(pair, tmp_path, gone, pictures):
    for path in [*tmp_path.glob("*/evals.jsonl"), *tmp_path.glob("*/responses/*")]:
        change_rows(path, lambda row: {name: None for name in row if name.startswith(gone)})
    page = make(pair, tmp_path)
    told = "the proxy: (won|lost|tie)" if pictures == 7 else "there are no win rates"
    assert page.html.count("<svg") == pictures and re.search(told, page.text)


def test_a_run_that_still_trains_is_shown_as_far_as_it_has_come(pair, tmp_path):
    for path in pair[1].glob("*.jsonl"):
        path.write_text(path.read_text()[:-20])  # the last line is half written
    assert "2 of 3" in make(pair, tmp_path).text
    for path in pair[1].glob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(True)[: path.stem == "evals"]))
    assert "0 of 3" in make(pair[1:], tmp_path).text


def test_responses_come_from_the_evaluations_nearest_to_a_kl(tmp_path):
    kls = [0.0, 0.9, 1.2, 2.9, 2.1, 8.0, 4.1]
    run = report.Run("run", tmp_path, {}, [{"kl": kl} for kl in kls], "")
    chosen = report.choose_evaluations(run, (1.0, 2.0, 7.0, 20.0))
    shown = {"SFT": 0.0, "KL near 1": 0.9, "KL near 2": 2.1, "KL near 7": 8.0, "last": 4.1}
    assert {level: row["kl"] for level, row in chosen.items()} == shown


def test_as_commands(runs, tmp_path):
    page = tmp_path / "new" / "page.html"
    call("tools/diff.py", "ipo_online.py", "dpo_online.py", "--out", page)
    assert page.read_text() == (REPO / "docs/diffs/ipo_online--dpo_online.html").read_text()
    for *command, message in [
        ("tools/diff.py", "one.py", "1 files named"),
        ("tools/diff.py", "nowhere.py", "ipo_online.py", "nowhere.py: is no text file"),
        ("tools/report.py", "0 runs named"),
        ("tools/report.py", tmp_path, "not the folder of a run"),
        ("tools/report.py", runs["ipo_online"], "--nats", 0, "--nats 0.0"),
    ]:
        error = call(*command, "--out", tmp_path / "none.html", code=1).stderr
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_benchmarks(setup):
    words = "--rows 4 --prompt-tokens 8 --response-tokens 4 --rounds 1".split()
    done = call("benchmarks/sampling.py", "--model", setup / "sft", *words).stdout.splitlines()
    assert set(json.loads(done[-1])["ratios"]) == {"sample / dynamic", "sample / static"}
    words = "--rows 32 --tokens 64 --vocabulary 8000 --layers 1".split()
    done = json.loads(call("benchmarks/memory.py", *words).stdout.splitlines()[-1])["results"]
    assert done["naive"]["bytes"] > done["scripts"]["bytes"]
    assert done["naive"]["value"] == pytest.approx(done["scripts"]["value"])
    needed = "no such setup" if importlib.util.find_spec("trl") else "this benchmark needs TRL: pip"
    assert needed in call("benchmarks/steps.py", "--setup", "nowhere", code=1).stderr
