"""From preference data to ids: every form, the boundary between prompt and response, rows that cannot be used."""

import gzip
import itertools
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing

from common import (
    batch_order,
    by_length,
    collate,
    decode,
    encode,
    generator,
    has_test,
    load_pairs,
    load_policy,
    load_rows,
    load_tokenizer,
    pad,
    row_strings,
)
from ipo_online import sample
from tests.conftest import SHARED, letter_tokenizer, needs_shared

HH = "hh-rlhf/harmless-base-test.jsonl.gz"
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def load(path, tokenizer=None, on_bad_row="error", prompt=8, response=8, **options):
    return load_pairs(
        str(path), tokenizer or letter_tokenizer(), prompt, response, on_bad_row, **options
    )


def test_strings_become_ids_and_only_a_finished_response_gets_an_end(tmp_path):
    rows = [
        {"prompt": "ab", "chosen": "cd", "rejected": "e"},
        {
            "prompt": "h",
            "chosen": "a",
            "rejected": "bb",
            "chosen_finished": False,
            "rejected_finished": True,
            "margin": 0.0,
        },
    ]
    pairs = load(write_rows(tmp_path / "pairs.jsonl", rows))
    assert pairs[0] == {
        "row": 0,
        "text": "ab",
        "margin": None,
        "prompt": [2, 3],
        "chosen": [4, 5, 1],
        "rejected": [6, 1],
    }
    assert (
        pairs[1]["chosen"] == [2]
        and pairs[1]["rejected"] == [3, 3, 1]
        and pairs[1]["margin"] == 0.0
    )


def test_conversations_go_through_the_chat_template(tmp_path):
    tokenizer = letter_tokenizer(letters="abcdefghu")
    tokenizer.chat_template = TEMPLATE
    turns = [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    answers = [[{"role": "assistant", "content": text}] for text in ("e", "ff")]
    rows = {"prompt": turns, "chosen": answers[0], "rejected": answers[1]}
    explicit = load(write_rows(tmp_path / "a.jsonl", [rows]), tokenizer)
    rows = {"chosen": turns + answers[0], "rejected": turns + answers[1]}
    implicit = load(write_rows(tmp_path / "b.jsonl", [rows]), tokenizer)
    assert explicit == implicit
    rows = {
        "prompt": "b",
        "chosen": turns + answers[0],
        "rejected": turns + answers[1],
    }  # prompt also as a string
    assert load(write_rows(tmp_path / "c.jsonl", [rows]), tokenizer) == implicit
    for chosen, rejected, reason in (
        ([*answers[0], turns[0], *answers[0]], answers[1], "by one message each"),
        (answers[0], [turns[0]], "must be the assistant's"),
    ):
        with pytest.raises(SystemExit, match=f"row 0: .*{reason}"):
            load(
                write_rows(
                    tmp_path / "d.jsonl",
                    [{"prompt": turns, "chosen": chosen, "rejected": rejected}],
                ),
                tokenizer,
            )
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SystemExit, match="row 0: roles must alternate"):
        load(tmp_path / "a.jsonl", tokenizer)
    assert (
        explicit[0]["text"] == "ubacuda"
        and explicit[0]["chosen"] == [6, 1]
        and explicit[0]["rejected"] == [7, 7, 1]
    )


def test_a_chat_template_that_writes_the_beginning_gets_no_second_one():
    """A tokenizer that puts a beginning before every text does not where the text has one; alone it does."""
    tokenizer = letter_tokenizer(letters="abcdefgh")
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    for prompts in (["ab", "c"], ["<bos>ab", "<bos>c"], ["ab", "<bos>c"], ["<bos>ab", "c"]):
        heads, tails, alone = encode(tokenizer, prompts, ["d", "ef"], [True, False])
        assert heads == [[bos, 2, 3], [bos, 4]] and tails == [[5, 1], [6, 7]] and not alone


def test_decode_is_the_inverse_of_encode_even_where_a_tokenizer_cleans_up():
    tokenizer = letter_tokenizer(letters="ab .,")
    tokenizer.clean_up_tokenization_spaces = True
    prompts, responses, _ = encode(tokenizer, ["a", "b"], [" a .", " , b"], [True, False])
    assert decode(tokenizer, prompts, responses) == ([" a .", " , b"], [True, False])


def test_implicit_prompts_end_at_the_last_assistant_turn(tmp_path):
    tokenizer = letter_tokenizer(letters="\n:HumanAsit bc")
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    pairs = load(
        write_rows(tmp_path / "hh.jsonl", [{"chosen": start + " b", "rejected": start + " c"}]),
        tokenizer,
        prompt=99,
    )
    assert pairs[0]["text"] == start and tokenizer.decode(pairs[0]["chosen"]) == " b<eos>"


BAD = {
    "blank": {"prompt": "a", "chosen": " ", "rejected": "b"},
    "prompt is blank": {"prompt": "", "chosen": "a", "rejected": "b"},
    "rejected is no text": {"prompt": "a", "chosen": "a", "rejected": None},
    "does not know": {"prompt": "a", "chosen": "z", "rejected": "b"},
    "chosen has 9 tokens, --max-response-tokens is 8": {
        "prompt": "a",
        "chosen": "abcdabcd",
        "rejected": "b",
    },
    "prompt has 9 tokens, --max-prompt-tokens is 8": {
        "prompt": "abcdabcda",
        "chosen": "a",
        "rejected": "b",
    },
    "must be true or false": {
        "prompt": "a",
        "chosen": "a",
        "rejected": "b",
        "chosen_finished": "false",
    },
    "chosen_finished and rejected_finished must": {
        "prompt": "a",
        "chosen": "a",
        "rejected": "b",
        "rejected_finished": 0,
    },
    "end token": {"prompt": "a", "chosen": "a<eos>b", "rejected": "b"},
    "chosen and rejected are the same": {"prompt": "a", "chosen": "ab", "rejected": "ab"},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(reason, tmp_path, capsys):
    good = {"prompt": "ab", "chosen": "cd", "rejected": "e"}
    path = write_rows(tmp_path / "pairs.jsonl", [good, good, BAD[reason], good])
    with pytest.raises(SystemExit) as error:
        load(path)
    assert (
        f"{path}: row 2: " in str(error.value)
        and reason in str(error.value)
        and "\n" not in str(error.value)
    )
    assert [pair["row"] for pair in load(path, on_bad_row="skip")] == [0, 1, 3]
    assert "1 of 4 rows left out" in capsys.readouterr().out


def test_a_prompt_of_which_no_token_is_left_is_a_bad_row(tmp_path):
    """Its tokenizer drops what it has: U+200B, say."""
    tokenizer, good = letter_tokenizer(), {"prompt": "ab", "chosen": "cd", "rejected": "e"}
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    path = write_rows(tmp_path / "pairs.jsonl", [good, good | {"prompt": "\u200b"}])
    with pytest.raises(SystemExit, match="row 1: the prompt has no tokens"):
        load(path, tokenizer)
    assert len(load(path, tokenizer, on_bad_row="skip")) == 1


def test_a_margin_is_a_number_or_none(tmp_path):
    good = {"prompt": "ab", "chosen": "cd", "rejected": "e"}
    path = write_rows(
        tmp_path / "numbers.jsonl", [good | {"margin": margin} for margin in (2, 0.5, None)]
    )
    assert [pair["margin"] for pair in load(path)] == [2, 0.5, None]
    path = write_rows(tmp_path / "words.jsonl", [good | {"margin": "wide"}])
    assert load(path)[0]["margin"] is None


def test_prompts_alone_are_read_where_no_responses_are_needed(tmp_path, capsys):
    """The same ids as in pairs, strings or conversations; bad ones are named; what has one response is no such data."""
    tokenizer = letter_tokenizer(letters="abcdefghu")
    tokenizer.chat_template = TEMPLATE
    strings = ["ab", "c", "abcdabcda"]
    turns = [[{"role": "user", "content": text}] for text in strings]
    for prompts, answers in (
        (strings, "ef"),
        (turns, [[{"role": "assistant", "content": text}] for text in "ef"]),
    ):
        rows = [
            {"prompt": prompt} | dict(zip(("chosen", "rejected"), answers)) for prompt in prompts
        ]
        pairs = load(write_rows(tmp_path / "pairs.jsonl", rows), tokenizer, prompt=99)
        path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
        with pytest.raises(
            SystemExit, match=r"row 0: there must be columns chosen and rejected, .* serve online"
        ):
            load(path, tokenizer)
        with pytest.raises(
            SystemExit,
            match=r"row 2: the prompt has \d+ tokens, --max-prompt-tokens is 8 \(1 rows of 3",
        ):
            load(path, tokenizer, prompts_alone=True)
        alone = load(path, tokenizer, "skip", prompts_alone=True)
        assert "1 of 3 rows left out" in capsys.readouterr().out
        assert alone == [
            {key: pair[key] for key in ("row", "text", "margin", "prompt")} for pair in pairs[:2]
        ]
        assert [pair["prompt"].messages for pair in alone] == [
            pair["prompt"].messages for pair in pairs[:2]
        ]
    for row, reason in (
        ({"prompt": "z"}, "does not know"),
        ({"prompt": " "}, "prompt is blank"),
        ({"text": "a"}, "columns"),
    ):
        with pytest.raises(SystemExit, match=f"row 0: .*{reason}"):
            load(write_rows(tmp_path / "prompts.jsonl", [row]), prompts_alone=True)
    with pytest.raises(SystemExit, match="row 0: there must be columns chosen and rejected"):
        load(
            write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a", "chosen": "b"}]),
            prompts_alone=True,
        )
    answered = [*turns[0], {"role": "assistant", "content": "e"}]
    with pytest.raises(SystemExit, match="row 0: the prompt's last message is the assistant's"):
        load(
            write_rows(tmp_path / "prompts.jsonl", [{"prompt": answered}]),
            tokenizer,
            prompts_alone=True,
        )


GOOD = '{"prompt": "ab", "chosen": "cd", "rejected": "e"}\n'
UNREADABLE = {
    "is empty": b"",
    "no data": b"\n\n",
    "JSON parse error: Invalid value. in row 1": GOOD.encode() + b"not json\n",
    "surrogate pair in string is invalid. in row 0": b'{"prompt": "a\\ud800", "chosen": "b", "rejected": "c"}\n',
    "can't decode byte 0xe9": b'{"prompt": "caf\xe9", "chosen": "b", "rejected": "c"}\n',
    "must be columns chosen and rejected, there are prompt, choosen": b'{"prompt": "a", "choosen": "b", "rejected": "c"}',
    "row 0: .*share no prompt up to": b'{"chosen": "a", "rejected": "b"}',
    "Compressed file ended before": gzip.compress(GOOD.encode() * 999)[:50],
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_a_file_that_cannot_be_read_ends_in_one_line(reason, tmp_path, capfd):
    path = tmp_path / ("pairs.jsonl.gz" if "Compressed" in reason else "pairs.jsonl")
    path.write_bytes(UNREADABLE[reason])
    with pytest.raises(SystemExit, match=rf"^error: .*pairs\.jsonl.*: .*{reason}") as error:
        load(path)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")
    with pytest.raises(SystemExit, match=r"^error: .*pairs\.jsonl"):
        load(path, on_bad_row="skip")


MIXED = ["chosen", 3, ["x"], None, [{"role": "assistant", "content": "x"}]]


@pytest.mark.parametrize("text", MIXED[1:], ids=str)
def test_a_row_of_another_type_is_named(text, tmp_path):
    rows = [json.loads(GOOD), json.loads(GOOD), json.loads(GOOD) | {"chosen": text}]
    with pytest.raises(SystemExit, match="row 2: chosen is no text"):
        load(write_rows(tmp_path / "pairs.jsonl", rows))


def test_oddities_that_can_be_used_say_nothing(tmp_path, capfd):
    """Extra columns, right-to-left text, a byte-order mark, an array instead of lines, one row, NUL bytes."""
    tokenizer = letter_tokenizer("<eos>", letters="abcde\u05d0\u0645\0")
    row = {
        "prompt": "ab",
        "chosen": "\u05d0\u05d0",
        "rejected": "\u0645\0",
        "extra": {"deep": [1, None]},
        "id": 7,
    }
    for content in (json.dumps(row), "\ufeff" + json.dumps(row), json.dumps([row, row])):
        (tmp_path / "pairs.json").write_text(content)
        pairs = load(tmp_path / "pairs.json", tokenizer)
        assert (
            tokenizer.decode(pairs[0]["chosen"][:-1]) == row["chosen"]
            and pairs[0]["rejected"][-1] == 0
        )
        assert capfd.readouterr() == ("", "")


def test_an_unknown_token_that_is_the_end_token_too_marks_no_word_as_unknown(tmp_path):
    """As some tokenizers of the Hub have it: then nothing can be said of unknown words."""
    tokenizer = letter_tokenizer()
    tokenizer.bos_token = tokenizer.unk_token
    row = {"prompt": tokenizer.unk_token + "ab", "chosen": "cd", "rejected": "e"}
    assert load(write_rows(tmp_path / "pairs.jsonl", [row]), tokenizer)[0]["prompt"][-2:] == [2, 3]


WORDS = st.text("abz \n\0\ud800\u05d0", max_size=10)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS}),
    max_size=3,
)
NUMBERS = itertools.count()
CELL = st.one_of(WORDS, st.none(), st.integers(), st.lists(WORDS, max_size=2), MESSAGES)


@given(
    st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "chosen_finished"]), CELL),
    st.sampled_from([("chosen", "rejected"), ()]),
)
@settings(max_examples=300, deadline=None)
def test_any_row_is_either_its_texts_or_a_reason(row, names):
    """Whatever the cells hold: strings that are not blank, or a ValueError of one line; never anything else."""
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = TEMPLATE
    try:
        prompt, responses, _ = row_strings(row, tokenizer, names)
    except ValueError as reason:
        assert str(reason) and "\n" not in str(reason)
    else:
        assert len(responses) == len(names)
        assert all(isinstance(text, str) and text.strip() for text in (prompt, *responses))


IDS = st.sampled_from(["prompt_ids", "chosen_ids", "rejected_ids", "margin"])
ID_ROW = st.dictionaries(
    IDS, st.one_of(st.lists(st.integers(-1, 10), max_size=3), st.integers(), st.none(), st.text())
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "other"]), CELL),
        max_size=4,
    )
    | st.lists(
        ID_ROW | st.just({"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4, 1]}), max_size=4
    )
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_file_is_either_pairs_or_one_line(tmp_path, rows):
    """Whatever JSON its lines are: token ids within the limits, or an error of one line that names the file."""
    path, tokenizer = tmp_path / f"{next(NUMBERS)}.jsonl", letter_tokenizer()
    tokenizer.chat_template = TEMPLATE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for on_bad_row, prompts_alone in itertools.product(("error", "skip"), (False, True)):
        try:
            pairs = load(path, tokenizer, on_bad_row, prompts_alone=prompts_alone)
        except SystemExit as error:
            assert str(error).startswith(f"error: {path}: ") and "\n" not in str(error)
        else:
            names = (
                ("prompt", "chosen") if "chosen" in pairs[0] or not prompts_alone else ("prompt",)
            )
            assert pairs and all(0 < len(p[name]) <= 8 for p in pairs for name in names)


def test_a_file_of_a_hub_data_set_is_asked_for_by_its_address(monkeypatch):
    """hf://datasets/OWNER/NAME/FILE is handed to datasets as a file of its kind, whether or not such a path exists here."""
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *told, **options: asked.append((told, options)) or datasets.Dataset,
    )
    monkeypatch.setattr(datasets.Dataset, "to_list", staticmethod(lambda: []))
    for name, kind in (
        ("helpful-base/train.jsonl.gz", "json"),
        ("data/train_prefs-*.parquet", "parquet"),
    ):
        assert load_rows(f"hf://datasets/someone/pairs/{name}") == []
        assert asked.pop() == (
            (kind,),
            {"data_files": f"hf://datasets/someone/pairs/{name}", "split": "train"},
        )


def test_gzip_parquet_csv_and_folders_are_read(tmp_path):
    import datasets

    rows = [{"prompt": "ab", "chosen": "cd", "rejected": "e"}] * 3
    data = datasets.Dataset.from_list(rows)
    (tmp_path / "folder").mkdir()
    (
        data.to_parquet(tmp_path / "pairs.parquet"),
        data.to_csv(tmp_path / "pairs.csv"),
        data.save_to_disk(tmp_path / "one"),
    )
    data.to_json(tmp_path / "pairs.jsonl.gz", compression="gzip")
    data.to_json(tmp_path / "folder" / "train.jsonl")
    (tmp_path / "folder" / "test.jsonl").write_text(json.dumps(rows[0]))
    expected = load(write_rows(tmp_path / "pairs.jsonl", rows))
    for name in ("pairs.parquet", "pairs.csv", "pairs.jsonl.gz", "folder", "one"):
        assert load(tmp_path / name) == expected
    assert (
        len(load_pairs(str(tmp_path / "folder"), letter_tokenizer(), 8, 8, "error", split="test"))
        == 1
    )
    (
        data.to_parquet(tmp_path / "both" / "train.parquet"),
        data.to_parquet(tmp_path / "both" / "test.parquet"),
    )
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "alone" / "train.parquet")
    assert all(has_test(str(tmp_path / name)) for name in ("folder", "both", "saved"))
    assert not any(
        has_test(str(tmp_path / name)) for name in ("pairs.parquet", "alone", "one", "nowhere")
    )


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=6)] * 2), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_collation_loses_nothing(rows):
    """Whatever the lengths: responses follow their prompts, the mask is true at them alone; padding has its side."""
    prompts, responses = [[3, *x] for x, _ in rows], [y for _, y in rows]
    batch = collate(prompts, responses, letter_tokenizer(), "cpu")
    assert [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask)] == responses
    assert all(
        ids[: len(x) + len(y)].tolist() == x + y for ids, x, y in zip(batch.ids, prompts, responses)
    )
    for side, edge in (("left", -1), ("right", 0)):
        ids, mask = pad(prompts, letter_tokenizer(), "cpu", side)
        assert [row[m == 1].tolist() for row, m in zip(ids, mask)] == prompts and (
            mask[:, edge] == 1
        ).all()


@given(
    st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=6)] * 3), min_size=1, max_size=9),
    st.integers(1, 12),
)
@settings(max_examples=50, deadline=None)
def test_parts_of_a_batch_hold_every_pair_once(rows, count):
    """At most as many parts as asked for, of pairs of like length: none is longer than any of a later part."""
    parts = by_length(*zip(*rows), count)
    assert (
        sorted(i for part in parts for i in part) == list(range(len(rows))) and len(parts) <= count
    )
    lengths = [
        [len(x) + max(len(y), len(z)) for x, y, z in (rows[i] for i in part)] for part in parts
    ]
    assert all(max(a) <= min(b) for a, b in zip(lengths, lengths[1:]))


def test_order_of_the_data():
    order = batch_order(10, 4, 5, seed=3)
    assert order.shape == (5, 4) and sorted(order.flatten()[:10].tolist()) == list(range(10))
    assert torch.equal(
        order, batch_order(10, 4, 9, seed=3)[:5]
    )  # a shorter run is a prefix of a longer one
    assert order.flatten()[:10].tolist() != order.flatten()[10:].tolist()
    assert not torch.equal(order, batch_order(10, 4, 5, seed=4))
    assert batch_order(10, 4, 4, 3, "none").flatten().tolist() == [*range(10), *range(6)]
    windows = batch_order(12, 2, 6, 3, 2).flatten().tolist()
    assert [sorted(windows[i : i + 4]) for i in (0, 4, 8)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert windows != list(range(12))


def test_generators_depend_on_their_key_alone():
    draw = lambda *key: torch.rand(4, generator=generator(*key)).tolist()  # noqa: E731
    assert draw(1, 2, "sample") == draw(1, 2, "sample")
    assert (
        len(
            {
                tuple(draw(*key))
                for key in ((1, 2, "sample"), (1, 3, "sample"), (2, 2, "sample"), (1, 2, "order"))
            }
        )
        == 4
    )


@needs_shared
def test_own_samples_as_strings_give_back_their_ids(tmp_path, capsys):
    """A real model with a tokenizer that marks the start of a text: sampled, decoded, written, loaded as strings."""
    source = str(SHARED / "models" / "stories260K")
    model, tokenizer = load_policy(source, "cpu", 128)
    openings = [line["prompt"] for line in load_rows_of("stories/pairs.jsonl.gz")][:200]
    prompts = [tokenizer(text).input_ids for text in openings]
    uniforms = torch.rand(2 * len(prompts), 40, generator=torch.Generator().manual_seed(0))
    responses = sample(model, prompts * 2, uniforms, tokenizer)
    texts, finished = decode(tokenizer, prompts * 2, responses)
    columns = ("prompt", "chosen", "chosen_finished", "rejected", "rejected_finished")
    halves = [side[part] for part in (slice(200), slice(200, None)) for side in (texts, finished)]
    rows = [dict(zip(columns, values)) for values in zip(openings, *halves)]
    pairs = load(write_rows(tmp_path / "own.jsonl", rows), tokenizer, prompt=64, response=64)
    loaded = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
    same = sum(y == ids for y, ids in zip(responses, loaded, strict=True)) / len(responses)
    alone = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    alone = sum(
        y[: len(y) - done] == ids for y, done, ids in zip(responses, finished, alone)
    ) / len(responses)
    with capsys.disabled():
        print(
            f" [{same:.1%} of {len(responses)} samples give back their ids, {alone:.1%} if encoded alone] ",
            end="",
        )
    assert [pair["prompt"] for pair in pairs] == prompts and same >= 0.95 and alone < 0.5


def load_rows_of(name):
    with gzip.open(SHARED / "data" / name, "rt") as file:
        return [json.loads(line) for line in file]


@needs_shared
def test_stories_load_whole():
    tokenizer = load_tokenizer(str(SHARED / "models" / "stories260K"))
    rows = load_rows_of("stories/pairs.jsonl.gz")
    pairs = load_pairs(
        str(SHARED / "data" / "stories" / "pairs.jsonl.gz"), tokenizer, 64, 64, "error"
    )
    assert len(pairs) == len(rows)
    for row, pair in zip(rows[:500], pairs):
        assert (pair["chosen"][-1] == tokenizer.eos_token_id) == row["chosen_finished"]
        assert (
            tokenizer.decode(pair["prompt"] + pair["rejected"], skip_special_tokens=True)
            == row["prompt"] + row["rejected"]
        )


@needs_shared
def test_human_preferences_with_implicit_prompts_and_real_dirt(capsys):
    """hh-rlhf: nine rows that cannot be used are refused or skipped by number, and rows beyond the context too."""
    tokenizer = load_tokenizer(str(SHARED / "models" / "stories260K"))
    source, rows = str(SHARED / "data" / HH), load_rows_of(HH)
    dirt = {86, 516, 925, 1103, 1254, 1688, 1950, 1952, 2036}
    with pytest.raises(
        SystemExit, match=r"row 86: (chosen|rejected) is blank \(9 rows of 2312 are unusable"
    ):
        load_pairs(source, tokenizer, 10**6, 10**6, "error")
    pairs = load_pairs(source, tokenizer, 10**6, 10**6, "skip")
    assert "9 of 2312 rows left out" in capsys.readouterr().out
    assert {pair["row"] for pair in pairs} == set(range(2312)) - dirt
    for pair in pairs[::50]:
        row = rows[pair["row"]]
        assert pair["text"].endswith("\n\nAssistant:") and row["chosen"].startswith(pair["text"])
        for name in ("chosen", "rejected"):
            assert (
                tokenizer.decode(pair["prompt"] + pair[name], skip_special_tokens=True) == row[name]
            )
            assert pair[name][-1] == tokenizer.eos_token_id
    fitting = load_pairs(source, tokenizer, 384, 128, "skip")
    expected = {
        p["row"]
        for p in pairs
        if len(p["prompt"]) <= 384 and max(len(p["chosen"]), len(p["rejected"])) <= 128
    }
    assert {pair["row"] for pair in fitting} == expected and 100 < len(expected) < 2000
    assert f"{2312 - len(expected)} of 2312 rows left out" in capsys.readouterr().out


@needs_shared
def test_human_preferences_as_conversations():
    """oasst: several turns through a chat template; a message's text is what comes back."""
    tokenizer = load_tokenizer(str(SHARED / "models" / "stories260K"))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = load_rows_of("oasst/pairs.jsonl.gz")
    pairs = load_pairs(
        str(SHARED / "data" / "oasst" / "pairs.jsonl.gz"), tokenizer, 10**6, 10**6, "error"
    )
    assert len(pairs) == len(rows) == 754 and len({pair["text"] for pair in pairs}) == 212
    assert max(len(row["prompt"]) for row in rows) >= 3
    for row, pair in zip(rows, pairs):
        assert pair["text"].count("<user>") == sum(m["role"] == "user" for m in row["prompt"])
        assert pair["text"].startswith(f"<user>{row['prompt'][0]['content']}</user>") and pair[
            "text"
        ].endswith("<assistant>")
        text = tokenizer.decode(pair["prompt"] + pair["rejected"], skip_special_tokens=True)
        assert text == pair["text"] + row["rejected"][0]["content"]


@needs_shared
def test_a_folder_as_the_hub_lays_it_out(tmp_path):
    """README.md with a configuration, parquet files by split: what a Hub name stands for once it has been fetched."""
    import datasets

    rows = load_rows_of("oasst/pairs.jsonl.gz")[:40]
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows[:30]), ("test", rows[30:])):
        datasets.Dataset.from_list(part).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(
        f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test")
    )
    (tmp_path / "README.md").write_text(card + "---\n# pairs\n")
    assert load_rows(str(tmp_path)) == rows[:30] and load_rows(str(tmp_path), "test") == rows[30:]
