"""Two scripts as a page, and runs as a page: nothing is lost, every difference has its reason, no page needs the network."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import REPO, SCRIPTS, call, read_jsonl
from tools import diff, report

LINKED = [*diff.PAIRS, *(("ipo_offline", f"{loss}_offline") for loss in ("dpo", "slic", "bo2"))]
RENEW = "run `python tools/diff.py --all`, and add a reason to REASONS in tools/diff.py where it asks for one"


class Page(HTMLParser):
    """A page as a browser takes it: the lines of code on each side, the text in all, ids, and what it would load."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.loads, self.words, self.tags = [], [], [], [], []
        self.code = {"l": [], "r": []}
        self.side = None
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.loads += [
            attributes[name] for name in ("src", "href", "xlink:href", "data") if name in attributes
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "code" and "data-n" in attributes:
            self.side = self.code[attributes["class"]]
            self.side.append("")
            assert attributes["data-n"] == str(len(self.side))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.side = None if tag == "code" else self.side

    def handle_data(self, data):
        if self.side is not None:
            self.side[-1] += data
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def self_contained(html):
    """The page; it loads nothing, and its links lead to places in itself."""
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags) and "@import" not in html
    goals = page.loads + re.findall(r"url\(([^)]*)\)", html)
    assert all(goal.startswith("#") and goal[1:] in page.ids for goal in goals), goals
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    return page


def lines_of(script):
    return diff.read_lines(str(REPO / f"{script}.py"))


def render(left, right, names=("left.py", "right.py"), context=3):
    return diff.render(left, right, names, context)


# ------------------------------------------------------------------------------------------------------------ side by side


@pytest.mark.parametrize("pair", list(itertools.combinations(SCRIPTS, 2)), ids="--".join)
def test_every_difference_of_two_scripts_has_a_reason(pair):
    left, right = map(lines_of, pair)
    for section in diff.compare(left, right, 3):
        lines = [
            line for row in section.rows for line in diff.both(row, left, right) if line is not None
        ]
        assert section.kind != "change" or section.reasons, "\n".join([*lines, RENEW])


def test_no_reason_is_idle():
    said = [diff.compare(lines_of(a), lines_of(b), 3) for a, b in LINKED]
    said = {reason for sections in said for section in sections for reason in section.reasons}
    assert said == set(diff.REASONS.values())


def test_a_difference_that_is_new_has_no_reason():
    """What the first test rests on: something else than what the table knows is not taken for it."""
    before = lines_of("ipo_online")
    after = [line.replace("weight_decay=0.0", "weight_decay=0.1") for line in before]
    (change,) = [section for section in diff.compare(before, after, 3) if section.kind == "change"]
    assert change.reasons == [] and change.rows == [(change.rows[0][0],) * 2]
    assert "What differs, and why" not in render(before, after)


def test_what_a_reader_has_written_is_not_explained():
    """Only lines of this repository's scripts are: others may have the same words in them, for other reasons."""
    for left, right in (
        ("area = math.pi * r ** 2", "area = math.pi * r * r"),
        ("    if not ahead:", "    if not behind:"),
    ):
        (change,) = diff.compare([left], [right], 3)
        assert change.kind == "change" and change.reasons == []
    copied = [line.replace("args.steps", "4000") for line in lines_of("ipo_online")]
    said = [
        reason
        for section in diff.compare(lines_of("ipo_offline"), copied, 3)
        for reason in section.reasons
    ]
    assert diff.REASONS["sync_every: int"] in said and diff.REASONS["if not ahead:"] in said


@pytest.mark.parametrize("pair", diff.PAIRS, ids="--".join)
def test_pages_are_as_the_tool_renders_them_now(pair):
    page = REPO / "docs" / "diffs" / f"{'--'.join(pair)}.html"
    text = render(*map(lines_of, pair), tuple(f"{script}.py" for script in pair))
    assert page.exists() and page.read_bytes() == text.encode(), (
        f"{page.name} is not up to date: {RENEW}"
    )


def test_there_are_no_other_pages():
    assert {path.stem for path in (REPO / "docs" / "diffs").iterdir()} == {
        "--".join(pair) for pair in diff.PAIRS
    }


@pytest.mark.parametrize(
    "pair", [diff.PAIRS[0], diff.PAIRS[-1], ("ipo_offline", "bo2_online")], ids="--".join
)
def test_a_page_holds_both_files_whole(pair):
    page = self_contained(render(*map(lines_of, pair)))
    assert page.code == {"l": lines_of(pair[0]), "r": lines_of(pair[1])}
    assert all(
        reason in page.text
        for section in diff.compare(*map(lines_of, pair), 3)
        for reason in section.reasons
    )


def test_code_is_text_whatever_it_looks_like():
    left = [
        "\ufeff",
        "x = '<script>alert(1)</script>' & 1",
        "\tfoo( ",
        "",
        "unfinished = '''",
        "\x0c",
        "é = 2\u2028",
    ]
    page = self_contained(render(left, [*left[:2], "bar", *left[3:], ""], names=("<b>.py", "b.py")))
    assert (
        page.code == {"l": left, "r": [*left[:2], "bar", *left[3:], ""]} and "<b>.py" in page.text
    )


def test_words_that_differ_are_marked_and_long_same_parts_folded():
    left = [f"line_{i} = {i}" for i in range(40)]
    right = [line.replace("line_20 = 20", "line_20 = 21  # new") for line in left]
    html = render(left, right)
    change = html.partition('<div class="change">')[2].partition("</div>\n</div>")[0]
    assert re.findall(r"<mark>(.*?)</mark>", re.sub(r"</?b[^>]*>", "", change)) == [
        "20",
        "21",
        "  ",
        "# new",
    ]
    assert re.findall(r"<summary>(.*?)</summary>", html) == [
        "17 lines that are the same",
        "16 lines that are the same",
    ]
    assert (
        html.index("17 lines")
        < html.index("line_16")
        < html.index("</details>")
        < html.index("line_17")
    )


def test_lines_that_belong_together_stand_side_by_side():
    left = ["clock, own = [now()], share(n)", "chosen = [pairs[i] for i in own]", "margins = old"]
    right = ["clock = [now()]", "first = sample()", "chosen = [y1 if m else y2]", "extra()"]
    assert diff.align(left, right) == [(0, 0), (None, 1), (1, 2), (2, None), (None, 3)]
    assert diff.align([], ["a"]) == [(None, 0)] and diff.align(["a"], []) == [(0, None)]


@pytest.mark.parametrize("width", [100, 200])
def test_the_terminal_shows_what_differs(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(REPO)
    diff.main(diff.Args(("ipo_offline.py", "ipo_online.py")))
    text = capsys.readouterr().out
    assert (
        max(map(len, text.splitlines())) <= width
        and "preference_loss" in text
        and "def preference_loss" not in text
    )
    number = lines_of("ipo_online").index("        prompts, first, second = ahead.pop(0)") + 1
    assert re.search(rf"> +{number} +prompts, first, second =", text)
    number = lines_of("ipo_offline").index('    shuffle: Literal["all", "none"] | int = "all"') + 1
    assert re.search(rf"^ *{number} +shuffle: Literal\[.* < *$", text, re.M)
    for why in (diff.REASONS["proxy: str"], diff.REASONS["sample(policy, prompts * 2"]):
        assert why in " ".join(text.split())


def test_the_same_file_twice(monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    diff.main(diff.Args(("ipo_offline.py", "ipo_offline.py")))
    assert "are the same" in capsys.readouterr().out
    lines = lines_of("ipo_offline")
    assert self_contained(render(lines, lines)).code == {"l": lines, "r": lines}


def test_diff_as_a_command(tmp_path):
    call(
        "tools/diff.py", "ipo_online.py", "dpo_online.py", "--html", tmp_path / "new" / "page.html"
    )
    assert (tmp_path / "new" / "page.html").read_bytes() == (
        REPO / "docs/diffs/ipo_online--dpo_online.html"
    ).read_bytes()
    done = call("-m", "tools.diff", "ipo_online.py", tmp_path, code=1)
    assert (
        done.stderr.startswith("error: ")
        and len(done.stderr.splitlines()) == 1
        and str(tmp_path) in done.stderr
    )


def test_diff_refuses_what_it_cannot_compare(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for args, message in [
        (diff.Args(("one.py",)), "1 files named"),
        (diff.Args(("nowhere.py", "ipo_online.py")), "nowhere.py: no file"),
        (
            diff.Args((str(tmp_path / "binary"), str(REPO / "ipo_online.py"))),
            "binary: no file of text",
        ),
        (diff.Args(("a", "b"), context=-1), "--context -1"),
    ]:
        with pytest.raises(SystemExit, match=message):
            diff.main(args)


# ----------------------------------------------------------------------------------------------------------------- reports


def make(runs, out, **options):
    """(the page's HTML, the page) of a report on these folders."""
    report.main(report.Args(tuple(map(str, runs)), out=str(out), **options))
    html = out.read_text()
    return html, self_contained(html)


def change_rows(path, change):
    rows = read_jsonl(path)
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pair(runs, tmp_path):
    """Copies of an offline and an online run, to be changed."""
    return [
        Path(shutil.copytree(runs[script], tmp_path / script))
        for script in ("ipo_offline", "ipo_online")
    ]


def test_a_report_tells_what_the_runs_say(runs, setup, tmp_path):
    folders = [runs[script] for script in ("ipo_offline", "ipo_online", "ipo_hybrid")]
    html, page = make(folders, tmp_path / "a.html", prompts=3, nats=(0.01, 1.0))
    for folder in folders:
        last = read_jsonl(folder / "evals.jsonl")[-1]
        assert f"{last['kl']:.2f} ± {last['kl_stderr']:.2f}" in page.text
        assert f"{last['win_rate']:.3f} ± {last['win_rate_stderr']:.3f}" in page.text
        assert (
            f"{folder.name} {json.loads((folder / 'args.json').read_text())['script']}, 3 steps 3"
            in page.text
        )
        prompts = {
            row["prompt"]: row for row in reversed(read_jsonl(folder / "responses" / "3.jsonl"))
        }
        firsts = list(
            dict.fromkeys(row["prompt"] for row in read_jsonl(folder / "responses" / "3.jsonl"))
        )[:3]
        for prompt in firsts:
            answer = " ".join((prompts[prompt]["response"].strip() or "(nothing)").split())
            margin = prompts[prompt]["win_rate_margin"]
            word = "won" if margin > 0 else "lost" if margin < 0 else "tie"
            assert prompt in page.text
            assert re.search(
                re.escape(answer)
                + rf"( \(cut\))? {folder.name} , step 3, {last['kl']:.2f} nats, the golden preference model: {word}",
                page.text,
            )
    stored = {
        row["prompt"]: row["response"] for row in read_jsonl(setup / "baseline" / "responses.jsonl")
    }
    assert all(
        f"{prompt} baseline {' '.join(stored[prompt].split()) or '(nothing)'}" in page.text
        for prompt in firsts
    )
    drawings = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(drawings) == 7
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    for i in range(3):
        assert sum(f"var(--run{i})" in drawing for drawing in drawings) == 7
    assert make(folders, tmp_path / "b.html", prompts=3, nats=(0.01, 1.0))[0] == html


def test_arguments_in_which_runs_differ_come_first(pair, tmp_path):
    args = json.loads((pair[1] / "args.json").read_text())
    (pair[1] / "args.json").write_text(json.dumps(args | {"beta": 0.25, "proxy": "<i>"}))
    differ, same = map(dict, report.arguments(report.load_runs(tuple(map(str, pair)))))
    assert (
        differ["beta"] == ["0.1", "0.25"]
        and differ["shuffle"] == ["all", None]
        and differ["proxy"] == [None, "<i>"]
    )
    assert same["learning_rate"] == ["0.0005", "0.0005"] and not differ.keys() & same.keys()
    assert differ.keys() | same.keys() == args.keys() | {"shuffle"}
    text = make(pair, tmp_path / "a.html")[1].text
    places = [
        "beta 0.1 0.25",
        "proxy not in this script <i>",
        "that are the same in all",
        "learning_rate 0.0005 0.0005",
    ]
    places = [text.index(place, text.index("In these they differ")) for place in places]
    assert places == sorted(places)


def test_what_a_model_writes_is_text(pair, tmp_path):
    attack = "<script>alert(1)</script></div><b>&amp; $x_1$"
    for step in (0, 2, 3):
        change_rows(
            pair[1] / "responses" / f"{step}.jsonl", lambda row: row.update(response=attack)
        )
    renamed = pair[1].rename(tmp_path / "<b>online&")
    html, page = make([pair[0], renamed], tmp_path / "a.html")
    assert "<script" not in html and attack in page.text and "<b>online&" in page.text


def test_runs_without_golden_are_shown_by_the_proxy(pair, tmp_path):
    def drop(row, preference_model):
        row.update({key: None for key in row if key.startswith(preference_model)})

    for folder in pair:
        change_rows(folder / "evals.jsonl", lambda row: drop(row, "win_rate"))
        for path in (folder / "responses").iterdir():
            change_rows(path, lambda row: row.pop("win_rate_margin"))
    html, page = make(pair, tmp_path / "a.html")
    assert (
        "None of these runs has a golden preference model" in page.text and html.count("<svg") == 7
    )
    assert (
        re.search(r"the proxy: (won|lost|tie)", page.text)
        and "the golden preference model: " not in page.text
    )
    change_rows(pair[0] / "evals.jsonl", lambda row: drop(row, "proxy"))
    html, page = make(pair, tmp_path / "a.html")
    assert "Without that preference model, and so not shown: ipo_offline" in page.text
    change_rows(pair[1] / "evals.jsonl", lambda row: drop(row, "proxy"))
    html, page = make(pair, tmp_path / "a.html")
    assert (
        "there are no win rates" in page.text and html.count("<svg") == 5
    )  # neither the frontier nor the win rates


def test_a_run_that_goes_on_is_shown_as_far_as_it_has_come(pair, tmp_path):
    shutil.rmtree(pair[1] / "policy")
    for name in ("metrics", "timings", "evals"):
        text = (pair[1] / f"{name}.jsonl").read_text()
        (pair[1] / f"{name}.jsonl").write_text(text[:-20])  # the last line is half written
    html, page = make(pair, tmp_path / "a.html")
    assert (
        "ipo_online, unfinished: 2 of 3 steps 2" in page.text
        and "ipo_offline, 3 steps 3" in page.text
    )
    (pair[1] / "metrics.jsonl").write_text("")
    (pair[1] / "timings.jsonl").write_text("")
    (pair[1] / "evals.jsonl").write_text(
        "".join((pair[1] / "evals.jsonl").read_text().splitlines(True)[:1])
    )
    html, page = make([pair[1]], tmp_path / "a.html")
    assert (
        "No run has left SFT yet." in page.text
        and "unfinished: 0 of 3 steps 0" in page.text
        and "no step yet" in page.text
    )
    (pair[1] / "evals.jsonl").write_text("")
    with pytest.raises(SystemExit, match="has no evaluation yet"):
        make(pair, tmp_path / "a.html")


def test_answers_come_from_the_evaluations_nearest_to_a_kl(tmp_path):
    kls = [0.0, 0.9, 1.2, 2.9, 2.1, 8.0, 4.1]
    evals = [{"step": 10 * i, "kl": kl} for i, kl in enumerate(kls)]
    run = report.Run("run", tmp_path, {}, [], [], evals, "", "")
    (tmp_path / "responses").mkdir()
    for row in evals:
        run.answers(row["step"]).write_text("")
    steps = {
        level: row["step"]
        for level, row in report.choose_evaluations(run, (1.0, 2.0, 4.0, 7.0)).items()
    }
    assert steps == {
        "SFT": 0,
        "near 1 nat": 10,
        "near 2 nats": 40,
        "near 4 nats": 30,
        "near 7 nats": 50,
        "last": 60,
    }
    run.answers(40).unlink()  # of an evaluation whose answers are not kept there is nothing to show
    run.answers(60).unlink()
    steps = {level: row["step"] for level, row in report.choose_evaluations(run, (2.0,)).items()}
    assert steps == {"SFT": 0, "last": 50}


def test_a_verdict_is_goldens_where_there_is_one():
    assert report.verdict({"win_rate_margin": 0.5, "proxy_win_rate_margin": -1.0}) == (
        "won",
        "the golden preference model: won by 0.5",
    )
    assert report.verdict({"proxy_win_rate_margin": -1.25}) == ("lost", "the proxy: lost by 1.2")
    assert (
        report.verdict({"win_rate_margin": 0.0}) == ("tie", "the golden preference model: tie")
        and report.verdict({}) is None
    )


def test_prompts_that_only_one_run_has_are_not_shown(pair, tmp_path):
    for path in (pair[1] / "responses").iterdir():
        change_rows(path, lambda row: row.update(prompt=f"other {row['prompt']}"))
    both = report.load_runs(tuple(map(str, pair)))
    assert report.side_by_side(both, 9, (1.0,)) == []
    assert report.side_by_side(both[1:], 1, (1.0,))[0]["prompt"].startswith("other ")
    assert (
        "There is no prompt that all of these runs were evaluated on"
        in make(pair, tmp_path / "a.html")[1].text
    )


def test_report_as_a_command(runs, tmp_path):
    done = call(
        "tools/report.py",
        runs["ipo_offline"],
        runs["ipo_online"],
        "--out",
        tmp_path / "new" / "page.html",
    )
    assert "wrote" in done.stdout
    self_contained((tmp_path / "new" / "page.html").read_text())


def test_report_refuses_what_it_cannot_show(tmp_path):
    (tmp_path / "args.json").write_text("[]")
    for args, message in [
        (report.Args(()), "0 runs named"),
        (report.Args(("x",) * 9), "9 runs named"),
        (report.Args((str(tmp_path),)), "not the folder of a run"),
        (report.Args((str(tmp_path),), nats=(0.0,)), "--nats 0.0"),
        (report.Args((str(tmp_path),), prompts=-1), "--prompts -1"),
    ]:
        with pytest.raises(SystemExit, match=message):
            report.main(args)
