"""From preference data to ids: files as they are, prompts and responses, rows that are no use."""

import gzip
import itertools
import json
import math
import shutil
import unicodedata

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC, Replace
from tokenizers.processors import TemplateProcessing

from common import (
    batch_order,
    collate,
    decode,
    encode,
    generator,
    load_pairs,
    load_policy,
    load_rows,
    load_tokenizer,
    pad,
    sha256,
)
from ipo_online import sample
from tests.conftest import REPO, SHARED, call, letter_tokenizer, needs_shared, read_jsonl

GOOD = {"prompt": "ab", "chosen": "cd", "rejected": "e"}


def chat_tokenizer():
    """Letters; a conversation is its roles' first letters and contents; U+200B gives no token."""
    tokenizer = letter_tokenizer(letters="abcdefghu")
    turns = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}"
    refusal = "{% if messages[0].content == 'x' %}{{ raise_exception('x is refused') }}{% endif %}"
    tokenizer.chat_template = turns + refusal + "{% if add_generation_prompt %}a{% endif %}"
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    return tokenizer


def said(role, content):
    return [{"role": role, "content": content}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, tokenizer=None, on_bad_row="error", limit=8, **options):
    return load_pairs(
        str(path), tokenizer or chat_tokenizer(), (limit, limit), on_bad_row, **options
    )


def test_strings_become_ids_and_only_a_finished_response_gets_an_end(tmp_path):
    ends = {"chosen_finished": False, "rejected_finished": True}
    rows = [GOOD, GOOD | ends | {"margin": 2}, GOOD | {"margin": "wide"}]
    first, second, third = load(write(tmp_path / "pairs.jsonl", rows))
    ids = {"prompt": [2, 3], "chosen": [4, 5, 1], "rejected": [6, 1]}
    assert math.isnan(first.pop("margin")) and math.isnan(third["margin"])
    assert first == {"row": 0, "text": "ab", **ids}
    assert second == {"row": 1, "text": "ab", **ids, "chosen": [4, 5], "margin": 2}


def test_a_prompt_may_also_stand_beside_whole_conversations(tmp_path):
    turns = said("user", "b") + said("assistant", "c") + said("user", "d")
    answers = {"chosen": turns + said("assistant", "e"), "rejected": turns + said("assistant", "f")}
    for prompt in ({}, {"prompt": "b"}, {"prompt": turns}):
        (pair,) = load(write(tmp_path / "pairs.jsonl", [prompt | answers]))
        assert pair["text"] == "ubacuda" and pair["prompt"].messages == turns
        assert pair["chosen"] == [6, 1] and pair["rejected"] == [7, 1]


def test_a_prompt_begins_with_bos_once():
    """Also where a chat template has written it."""
    tokenizer = letter_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = ("<bos>", tokenizer.bos_token_id)
    whole = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.backend_tokenizer.post_processor = whole
    for prompts in itertools.product(("ab", "<bos>ab"), ("c", "<bos>c")):
        heads, tails = encode(tokenizer, prompts, ["d", "ef"], [1, None])
        assert heads == [[bos[1], 2, 3], [bos[1], 4]] and tails == [[5, 1], [6, 7]]


def test_a_text_may_come_back_in_unicodes_normal_form_alone(tmp_path):
    """The same text, say a tokenizer and Unicode: an accent of its own joins its letter."""
    tokenizer = letter_tokenizer(letters="ab\u00e4\u0308")
    tokenizer.backend_tokenizer.normalizer = NFC()
    row = {"prompt": "b", "chosen": "a\u0308", "rejected": "b"}
    (pair,) = load(write(tmp_path / "pairs.jsonl", [row]), tokenizer)
    back = decode(tokenizer, [[3]], [pair["chosen"]])[0][0]
    assert back == unicodedata.normalize("NFC", row["chosen"]) == "\u00e4"


def test_a_padding_token_that_is_a_word_is_in_no_text(tmp_path):
    """It would be lost where a text is read without special tokens."""
    tokenizer = letter_tokenizer(pad="a")
    for wrong in ({"prompt": "ba"}, {"chosen": "ca"}):
        row = {"prompt": "b", "chosen": "c", "rejected": "d"} | wrong
        with pytest.raises(SystemExit, match="row 0: (prompt|chosen) has .* padding"):
            load(write(tmp_path / "pairs.jsonl", [row]), tokenizer)


def test_a_checksum_sees_through_links(tmp_path):
    """Of a folder, and of one inside: what they hold has changed."""
    (tmp_path / "far").mkdir(), (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inside").symlink_to(tmp_path / "far")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    sums = []
    for rows in ([GOOD], [GOOD, GOOD]):
        write(tmp_path / "far" / "train.jsonl", rows)
        sums.append(sha256(str(tmp_path / "data")))
        assert sha256(str(tmp_path / "link")) == sums[-1]
    assert sums[0] != sums[1]


def test_decode_is_the_inverse_of_encode():
    """Even where a tokenizer cleans up. Ids beyond its words say nothing."""
    tokenizer = letter_tokenizer(letters="ab .,")
    tokenizer.clean_up_tokenization_spaces = True
    prompts, responses = encode(tokenizer, ["a", "b"], [" a .", " , b"], [1, None])
    assert decode(tokenizer, prompts, responses) == ([" a .", " , b"], [True, False])
    assert decode(tokenizer, [[2]], [[150, 3, 99, 1]]) == (["b"], [True])


def test_an_unknown_token_that_begins_a_text_too_marks_no_word_as_unknown(tmp_path):
    tokenizer = letter_tokenizer()
    tokenizer.bos_token = tokenizer.unk_token
    path = write(tmp_path / "pairs.jsonl", [GOOD | {"prompt": tokenizer.unk_token + "ab"}])
    assert load(path, tokenizer)[0]["prompt"][-2:] == [2, 3]


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=6)] * 2), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_collation_loses_nothing(rows):
    """Responses follow their prompts, the mask is 1 at them alone; padding has its side."""
    prompts, responses = [[3, *x] for x, _ in rows], [y for _, y in rows]
    ids, mask = collate(prompts, responses, "cpu")
    assert ids.shape[1] - mask.shape[1] == min(map(len, prompts))
    ends = ids[:, ids.shape[1] - mask.shape[1] :]
    assert [row[m == 1].tolist() for row, m in zip(ends, mask)] == responses
    for row, x, y in zip(ids.tolist(), prompts, responses):
        assert row[: len(x + y)] == x + y
    for side, edge in (("left", -1), ("right", 0)):
        ids, mask = pad(prompts, side)
        assert [row[m == 1].tolist() for row, m in zip(ids, mask)] == prompts
        assert mask[:, edge].all()


def test_a_file_is_the_one_that_is_named_whatever_its_path_has(tmp_path):
    """Not a neighbour that its name, taken for a pattern, would match; of a folder the same."""
    names = "run [seed 1]", "a*b", "what?", "{x,y}", "100%20 #"
    for name in (*names, "run s", "run 1", "a-b", "whats", "x", "100 "):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", [{"prompt": name}])
    for name in names:
        for path in (tmp_path / name, tmp_path / name / "train.jsonl"):
            assert load_rows(str(path)) == [{"prompt": name}]


def test_a_setup_and_a_replay_may_have_such_a_path(tmp_path):
    setup, out = tmp_path / "set [up]", tmp_path / "run [seed 1]"
    shutil.copytree(REPO / "tests" / "frozen" / "setup", setup)
    words = ["--steps", 2, "--batch-size", 4, "--eval-at", 2, "--eval-prompts", 4]
    words += ["--max-prompt-tokens", 12, "--max-response-tokens", 8, "--setup", setup]
    call("ipo_online.py", *words, "--save-pairs", "--out", out)
    replay = "--dataset", out / "online_pairs", "--shuffle", "none"
    call("ipo_offline.py", *words, *replay, "--out", tmp_path / "replay")
    metrics = [read_jsonl(run / "metrics.jsonl") for run in (out, tmp_path / "replay")]
    assert metrics[0] == metrics[1]


TEXTS = {"prompt": "2+2=", "chosen": "2024-01-01", "rejected": "None", "other": "1e5"}
TEXTS = [TEXTS, {"prompt": "N/A", "chosen": "4", "rejected": "\u05d0\0", "other": "true"}]
LINES = "".join(json.dumps(row) + "\n" for row in TEXTS)
CSV = "".join(",".join(row) + "\n" for row in (TEXTS[0], *(row.values() for row in TEXTS)))
KINDS = {"jsonl": LINES, "json": json.dumps(TEXTS, indent=1), "csv": CSV, "parquet": ""}


@pytest.mark.parametrize("kind", KINDS)
def test_text_stays_text(kind, tmp_path, capfd):
    """Whatever it looks like, in a file of each kind or a folder; gzipped; behind a BOM."""
    file = tmp_path / "plain" / f"train.{kind}"
    datasets.Dataset.from_list(TEXTS).to_parquet(file)
    if kind != "parquet":
        file.write_text(KINDS[kind])
    contents = {f"zip/train.{kind}.gz": gzip.compress(file.read_bytes())}
    contents |= {f"bom/train.{kind}": f"\ufeff{KINDS[kind]}".encode()} if KINDS[kind] else {}
    contents |= {f"upper/TRAIN.{kind.upper()}.GZ": gzip.compress(file.read_bytes())}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    capfd.readouterr()
    for path in (file, *(tmp_path / name for name in contents)):
        assert load_rows(str(path)) == TEXTS
        assert path.parent.name == "upper" or load_rows(str(path.parent)) == TEXTS
    assert capfd.readouterr() == ("", "")


def test_a_column_may_get_its_type_late(tmp_path):
    rows = [{"prompt": "x" * 400, "margin": None}] * 30_000 + [{"margin": 0.5, "late": [1]}]
    path = write(tmp_path / "train.jsonl", rows)
    assert load_rows(str(path)) == load_rows(str(tmp_path)) == rows


def test_a_folder_may_have_splits_and_be_as_the_hub_lays_it_out(tmp_path):
    """README.md with a configuration, parquet files by split; or one of save_to_disk."""
    parts, card = {"train": TEXTS, "test": TEXTS[:1]}, "---\nconfigs:\n- config_name: default\n"
    card += "  data_files:\n"  # and what it counts is of an older state
    counts = "dataset_info:\n  splits:\n  - name: train\n    num_bytes: 9\n    num_examples: 9\n"
    for split, rows in parts.items():
        card += f"  - split: {split}\n    path: data/{split}-*\n"
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows).to_parquet(file)
        (tmp_path / "plain").mkdir(exist_ok=True)
        write(tmp_path / "plain" / f"{split}.jsonl", rows)
    (tmp_path / "hub" / "README.md").write_text(card + counts + "---\n# pairs\n")
    saved = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()})
    saved.save_to_disk(tmp_path / "saved")
    for folder, split in itertools.product(("hub", "plain", "saved"), parts):
        assert load_rows(str(tmp_path / folder), split) == parts[split]
    datasets.Dataset.from_list(TEXTS).to_parquet(file)  # no cache keeps what was there
    assert load_rows(str(tmp_path / "hub"), "test") == TEXTS
    shutil.move(tmp_path / "hub", tmp_path / "hub [1]")
    with pytest.raises(SystemExit, match="takes its path for a pattern; name a file in it"):
        load_rows(str(tmp_path / "hub [1]"))


def test_a_file_of_a_hub_data_set_is_asked_for_by_its_address(monkeypatch):
    """hf://datasets/OWNER/NAME/FILE goes to datasets as a file of its kind."""
    asked, data = [], datasets.Dataset.from_list(TEXTS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **b: asked.append((a, b)) or data)
    for name, kind in (("a/train.jsonl.gz", "json"), ("data/train-*.parquet", "parquet")):
        source = f"hf://datasets/someone/pairs/{name}"
        assert load_rows(source) == TEXTS
        assert asked.pop() == ((kind,), {"data_files": source, "split": "train"})


LINE = json.dumps(GOOD).encode() + b"\n"
UNREADABLE = {
    "no usable row": ("a.jsonl", b""),
    "no usable row ": ("a.jsonl", b"\n\n"),
    "line 3 is not JSON: Expecting value": ("a.jsonl", LINE + b"\nnot json\n"),
    "line 2 is not JSON: Unterminated string": ("a.jsonl.gz", gzip.compress(LINE + LINE[:20])),
    "delimiter: line 2 column 2": ("a.json", b"[" + LINE + b" {}]"),
    "byte 0xe9 in position 65": ("a.jsonl", LINE + b'{"prompt": "caf\xe9"}\n'),
    "row 1 has more cells than there are columns": ("a.csv", b"prompt,chosen\na,b\nc,d,e\n"),
    "unexpected end of data": ("a.csv", b'prompt,chosen\na,b\nc,"d\n'),
    "row 1 is no object with columns": ("a.json", b'[{"prompt": "a"}, 3]'),
    "there must be columns chosen and rejected, there are a, b": ("a.csv", b"a,b\nc,d\n"),
    "row 0: .*nor a common one up to": ("a.jsonl", b'{"chosen": "a", "rejected": "b"}'),
    "row 0: .*surrogates not allowed": ("a.jsonl", LINE.replace(b"ab", b"a\\ud800")),
    "Compressed file ended before": ("a.jsonl.gz", gzip.compress(LINE * 999)[:50]),
    "Parquet": ("a.parquet", LINE),
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_a_file_that_cannot_be_read_ends_in_one_line(reason, tmp_path, capfd):
    name, content = UNREADABLE[reason]
    (tmp_path / name).write_bytes(content)
    for on_bad_row, told in (("error", reason.strip()), ("skip", "")):
        with pytest.raises(SystemExit, match=rf"^error: {tmp_path}/{name}: .*{told}") as error:
            load(tmp_path / name, on_bad_row=on_bad_row)
        assert "\n" not in str(error.value)
        assert on_bad_row == "skip" or capfd.readouterr() == ("", "")


ANSWERS = {"chosen": said("assistant", "e"), "rejected": said("assistant", "f")}
TALK = {"prompt": said("user", "a"), **ANSWERS}
BAD = [  # what is said, and what is wrong with a good row
    ("chosen is blank, or no text", {"chosen": " "}),
    ("prompt is blank, or no text", {"prompt": ""}),
    ("rejected is blank, or no text", {"rejected": None}),
    ("chosen is blank, or no text", {"chosen": 3}),
    ("chosen is blank, or no text", {"chosen": ["x"]}),
    ("chosen is blank, or no text", {"chosen": said("assistant", "e")}),  # rejected is one
    ("its tokens read '<pad>c' where it has 'zc'", {"chosen": "azc"}),
    ("prompt has no tokens", {"prompt": "\u200b"}),
    ("tokens is 8, the longest has 10", {"chosen": "abcdabcd", "rejected": "a" * 9}),
    ("prompt has 9 tokens, --max-prompt-tokens is 8, the longest has 9", {"prompt": "abcdabcda"}),
    ("chosen_finished must be true or false", {"chosen_finished": "false"}),
    ("rejected_finished must be true or false", {"rejected_finished": 0}),
    ("chosen has a token in its text that ends a response", {"chosen": "a<eos>b"}),
    ("chosen and rejected are the same", {"rejected": "cd"}),
    ("x is refused", TALK | {"prompt": said("user", "x")}),
    ("one message each, the assistant's", TALK | {"rejected": said("user", "f")}),
    ("by one message each", TALK | {"chosen": said("assistant", "e") * 2}),
]


@pytest.mark.parametrize("reason, wrong", BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(reason, wrong, tmp_path, capsys):
    path = write(tmp_path / "pairs.jsonl", [GOOD, GOOD, GOOD | wrong, GOOD])
    with pytest.raises(SystemExit) as error:
        load(path)
    assert f"{path}: row 2: " in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)
    assert [pair["row"] for pair in load(path, on_bad_row="skip")] == [0, 1, 3]
    assert "1 of 4 rows left out" in capsys.readouterr().out


def test_prompts_alone_are_read_where_no_responses_are_needed(tmp_path, capsys):
    """The same ids as in pairs, strings or conversations. What has one response is no such data."""
    strings = ["ab", "c", "abcdabcda"]
    for prompts, answers in (
        (strings, {"chosen": "e", "rejected": "f"}),
        ([said("user", text) for text in strings], ANSWERS),
    ):
        rows = [{"prompt": prompt} for prompt in prompts]
        pairs = load(write(tmp_path / "pairs.jsonl", [row | answers for row in rows]), limit=99)
        path = write(tmp_path / "prompts.jsonl", rows)
        with pytest.raises(SystemExit, match="row 0: there must be columns .*serve online"):
            load(path)
        with pytest.raises(SystemExit, match=r"row 2: prompt has \d+ tokens, .*1 of 3 rows"):
            load(path, prompts_alone=True)
        alone = load(path, on_bad_row="skip", prompts_alone=True)
        assert "1 of 3 rows left out" in capsys.readouterr().out
        for one, pair in zip(alone, pairs[:2], strict=True):
            assert one.keys() == {"row", "text", "prompt", "margin"}
            assert all(one[name] == pair[name] for name in ("row", "text", "prompt"))
            assert one["prompt"].messages == pair["prompt"].messages
    for row, reason in (
        ({"prompt": "z"}, "does not know"),
        ({"prompt": " "}, "prompt is blank, or no text"),
        ({"text": "a"}, "there must be columns"),
        ({"prompt": "a", "chosen": "b"}, "there must be columns chosen and rejected"),
        ({"prompt": said("user", "a") + said("assistant", "e")}, "ends with the assistant's"),
    ):
        with pytest.raises(SystemExit, match=f"row 0: .*{reason}"):
            load(write(tmp_path / "prompts.jsonl", [row]), prompts_alone=True)


WORDS = st.text("abz \n\0\ud800\u05d0", max_size=10)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS})
CELL = st.one_of(WORDS, st.none(), st.integers(), st.lists(WORDS, max_size=2))
CELL |= st.lists(TURN, max_size=3)
NAMES = st.sampled_from(["prompt", "chosen", "rejected", "chosen_finished", "other"])
ROW = st.dictionaries(NAMES, CELL)
IDS = st.one_of(st.lists(st.integers(-1, 10), max_size=3), st.integers(), st.none(), st.text())
ID_ROW = st.dictionaries(st.sampled_from(["prompt_ids", "chosen_ids", "rejected_ids"]), IDS)
ID_ROW |= st.just({"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4, 1]})
APART = [HealthCheck.function_scoped_fixture]  # each example writes its own file


@given(st.lists(ROW, max_size=4) | st.lists(ID_ROW, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=APART)
def test_any_file_is_either_pairs_or_one_line(tmp_path, rows):
    """Whatever its lines are: ids within the limits, or an error of one line with its name."""
    path = write(tmp_path / "pairs.jsonl", rows)
    for on_bad_row, prompts_alone in itertools.product(("error", "skip"), (False, True)):
        try:
            pairs = load(path, None, on_bad_row, prompts_alone=prompts_alone)
        except SystemExit as error:
            assert str(error).startswith(f"error: {path}: ") and "\n" not in str(error)
        else:
            names = ["prompt", *[name for name in ("chosen", "rejected") if name in pairs[0]]]
            assert pairs and (prompts_alone or len(names) == 3)
            assert all(0 < len(pair[name]) <= 8 for pair in pairs for name in names)


def test_order_of_the_data():
    flat = lambda order: list(itertools.chain(*order))  # noqa: E731
    order = batch_order(10, 4, 5, seed=3)
    assert [len(batch) for batch in order] == [4] * 5
    assert sorted(flat(order)[:10]) == sorted(flat(order)[10:]) == list(range(10))  # two epochs
    assert flat(order)[:10] != flat(order)[10:]
    assert batch_order(10, 4, 9, seed=3)[:5] == order != batch_order(10, 4, 5, seed=4)
    assert flat(batch_order(10, 4, 4, 3, "none")) == [*range(10), *range(6)]
    windows = flat(batch_order(10, 2, 10, 3, 2))  # of two batches; the last one is cut
    parts = [windows[i : i + 4] for i in (0, 4, 10, 14)]
    assert [sorted(part) for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    assert sorted(windows[8:10]) == sorted(windows[18:]) == [8, 9]
    assert {*windows[:2]} != {0, 1} and {*windows[4:6]} != {4, 5}  # not of one batch
    assert windows[:10] != windows[10:]
    with pytest.raises(SystemExit, match="--batch-size 11: the data have only 10 usable rows"):
        batch_order(10, 11, 1, 3)


def test_generators_depend_on_their_key_alone():
    draw = lambda *key: tuple(torch.rand(4, generator=generator(*key)).tolist())  # noqa: E731
    keys = (1, 2, "sample"), (1, 3, "sample"), (2, 2, "sample"), (1, 2, "order")
    assert draw(*keys[0]) == draw(*keys[0]) and len({draw(*key) for key in keys}) == 4


STORIES = SHARED / "models" / "stories260K"


def real_rows(name):
    """(the path of real data, its rows)."""
    path = SHARED / "data" / name
    return path, list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines()))


@needs_shared
def test_own_samples_as_strings_give_back_their_ids(tmp_path):
    """A tokenizer that marks the start of a text: sampled, decoded, written, loaded as strings."""
    model, tokenizer = load_policy(str(STORIES), 128)
    openings = [row["prompt"] for row in real_rows("stories/pairs.jsonl.gz")[1][:200]]
    prompts = tokenizer(openings).input_ids * 2
    uniforms = torch.rand(400, 40, generator=torch.Generator().manual_seed(0))
    responses = sample(model, prompts, uniforms, tokenizer.ends)
    texts, finished = decode(tokenizer, prompts, responses)
    columns = ("prompt", "chosen", "chosen_finished", "rejected", "rejected_finished")
    values = zip(openings, texts, finished, texts[200:], finished[200:])
    rows = [dict(zip(columns, row)) for row in values]
    pairs = load(write(tmp_path / "own.jsonl", rows), tokenizer, limit=64)
    loaded = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
    assert [pair["prompt"] for pair in pairs] == prompts[:200]
    assert sum(a == b for a, b in zip(responses, loaded, strict=True)) / 400 >= 0.95
    alone = tokenizer(texts, add_special_tokens=False).input_ids
    assert sum(y[: len(ids)] == ids for y, ids in zip(responses, alone)) / 400 < 0.5


@needs_shared
def test_human_preferences_with_implicit_prompts_and_real_dirt(capsys):
    """Nine rows are left out by number; of all others no text is lost."""
    tokenizer = load_tokenizer(str(STORIES))
    path, rows = real_rows("hh-rlhf/harmless-base-test.jsonl.gz")
    pairs = load(path, tokenizer, "skip", limit=10**6)
    told = capsys.readouterr().out
    assert "9 of 2312 rows left out, the first is row 86: " in told and " is blank" in told
    dirt = {86, 516, 925, 1103, 1254, 1688, 1950, 1952, 2036}
    assert {pair["row"] for pair in pairs} == set(range(2312)) - dirt
    for pair in pairs[::50]:
        row = rows[pair["row"]]
        assert pair["text"].endswith("\n\nAssistant:") and row["chosen"].startswith(pair["text"])
        for name in ("chosen", "rejected"):
            whole = tokenizer.decode(pair["prompt"] + pair[name], skip_special_tokens=True)
            assert whole == row[name] and pair[name][-1] == tokenizer.eos_token_id
