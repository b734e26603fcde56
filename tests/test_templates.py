"""What is trained is what the model would write: chat templates, ends of a response, special
tokens that a tokenizer adds, and rows whose text would change."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import ipo_online
from common import decode, encode, load_pairs, load_policy, load_tokenizer
from tests.conftest import REPO, SHORT, call, letter_tokenizer, read_jsonl, tiny_model

TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
ASK = "{% if add_generation_prompt %}[assistant]{% endif %}"
THINK = "{{ '<t></t>' if m.role == 'assistant' and loop.last else '' }}"
LETTERS = "abcdefgh[]sitnur<>/ "
# template: what it writes behind the prompt for the answer "b", and the token that ends it
TEMPLATES = {
    "plain": (TURN + ASK, "b", "<end>"),
    "a space before": (TURN.replace("{{ m.c", " {{ m.c") + ASK, " b", "<end>"),
    "a space behind": (TURN.replace("<end>", " <end>") + ASK, "b ", "<end>"),
    "an empty thought": (TURN.replace("{{ m.c", THINK + "{{ m.c") + ASK, "<t></t>b", "<end>"),
    "EOS behind the turn": (
        TURN + ASK.replace("{% endif", "{% else %}<eos>{% endif"),
        "b",
        "<end>",
    ),
    "EOS": (TURN.replace("<end>", "<eos>") + ASK, "b", "<eos>"),
    "no end": (TURN.replace("<end>", "") + ASK, "b", "<eos>"),
    "no prompt of its own": (TURN, "[assistant]b", "<end>"),
}


def chat(template, folder=None):
    """A tokenizer of letters with <end>, a special token; saved and loaded as a model's."""
    tokenizer = letter_tokenizer(letters=LETTERS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder))


def said(role, content):
    return [{"role": role, "content": content}]


TALK = {"prompt": said("user", "a"), "chosen": said("assistant", "b")}
TALK |= {"rejected": said("assistant", "c")}


def load(folder, tokenizer, *rows, **options):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(str(path), tokenizer, (99, 99), "error", **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_response_is_what_the_template_writes(name, tmp_path):
    """Its ids are those of the whole conversation, up to the first special token behind it."""
    template, response, end = TEMPLATES[name]
    tokenizer = chat(template, tmp_path)
    cut = {"chosen_finished": False}
    pair, unfinished = load(tmp_path, tokenizer, TALK, TALK | cut)
    whole = tokenizer.apply_chat_template(TALK["prompt"] + TALK["chosen"], tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    end = tokenizer.convert_tokens_to_ids(end)
    told = pair["prompt"] + pair["chosen"]
    assert tokenizer.decode(pair["chosen"][:-1]) == response and pair["chosen"][-1] == end
    assert told[:-1] == ids[: len(told) - 1] and (
        name == "no end" or told[-1] == ids[len(told) - 1]
    )
    assert unfinished["chosen"] == pair["chosen"][: -1 - (name == "a space behind")]
    assert tokenizer.ends == sorted({tokenizer.eos_token_id, end})
    (alone,) = load(tmp_path, tokenizer, {"prompt": TALK["prompt"]}, prompts_alone=True)
    assert alone["prompt"] == pair["prompt"]


def test_a_template_that_would_not_write_the_answer_there_is_named(tmp_path):
    """A prompt that opens a thought, which the written conversation does not have."""
    opened = ASK.replace("[assistant]", "[assistant]<t>")
    with pytest.raises(SystemExit) as error:
        load(tmp_path, chat(TURN + opened, tmp_path), TALK)
    told = "row 0: the chat template ends a prompt with '[user]a<end>[assistant]<t>', but writes"
    assert f"{told} an answer as '[user]a<end>[assistant]b<end>'; change it" in str(error.value)
    upper = chat(TURN.replace("m.content", "m.content | replace('b', 'd')") + ASK, tmp_path)
    with pytest.raises(SystemExit, match="row 0: the chat template changes chosen: it writes 'd'"):
        load(tmp_path, upper, TALK)
    with pytest.raises(SystemExit, match="row 0: .*tokenizer.chat_template is not set"):
        load(tmp_path, letter_tokenizer(), TALK)


def test_columns_tools_and_chat_template_kwargs_reach_the_template(tmp_path):
    template = TURN + "{{ tools[0].n if tools }}{{ 'e' if thinking }}" + ASK
    tokenizer, options = chat(template, tmp_path), {"chat_template_kwargs": {"thinking": True}}
    rows = TALK, TALK | options, TALK | {"tools": [{"n": "f"}]}, TALK | {"tools": '[{"n": "f"}]'}
    rows += (TALK | {"tools": "", "chat_template_kwargs": '{"thinking": true}'},)  # as in a .csv
    with pytest.raises(SystemExit, match="row 1: the chat template ends a prompt with"):
        load(tmp_path, tokenizer, *rows)  # it writes them behind an answer too
    prompts = [{"prompt": row.pop("prompt"), **row} for row in map(dict, rows)]
    for row in prompts:
        del row["chosen"], row["rejected"]
    pairs = load(tmp_path, tokenizer, *prompts, prompts_alone=True)
    ends = [pair["text"].removeprefix("[user]a<end>") for pair in pairs]
    assert ends == ["[assistant]", "e[assistant]", "f[assistant]", "f[assistant]", "e[assistant]"]


def test_no_part_of_a_message_is_dropped(tmp_path):
    """A thought in a field of its own is in the response; a call has no content, and no "None"."""
    thought = "{% if m.reasoning_content %}<t>{{ m.reasoning_content }}</t>{% endif %}"
    tokenizer = chat(TURN.replace("{{ m.c", thought + "{{ m.c") + ASK, tmp_path)
    answer = {"chosen": [TALK["chosen"][0] | {"reasoning_content": "d"}]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "f"}]}
    asked = {"prompt": [*TALK["prompt"], call, *said("user", "e")]}
    (pair,) = load(tmp_path, tokenizer, TALK | answer | asked)
    assert tokenizer.decode(pair["chosen"]) == "<t>d</t>b<end>"
    assert pair["text"] == "[user]a<end>[assistant]<end>[user]e<end>[assistant]"


def test_a_template_that_wants_a_system_message_has_its_end_found(tmp_path):
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    short = TURN.replace("m.role", "m.role[0]") + ASK.replace("[assistant]", "[a]")
    tokenizer = chat(wants + short, tmp_path)
    row = TALK | {"prompt": said("system", "s") + TALK["prompt"]}
    (pair,) = load(tmp_path, tokenizer, row)
    assert tokenizer.decode(pair["chosen"]) == "b<end>" and len(tokenizer.ends) == 2
    with pytest.raises(SystemExit, match="row 0: no "):
        load(tmp_path, tokenizer, TALK)


def test_a_content_in_parts_is_their_text(tmp_path):
    tokenizer = chat(TURN + ASK, tmp_path)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "d"}]
    (pair,) = load(tmp_path, tokenizer, TALK | {"prompt": said("user", parts)})
    assert pair["text"] == "[user]ad<end>[assistant]"
    assert pair["prompt"].messages == said("user", "ad")
    image = [{"type": "image", "url": "a.png"}, *parts]
    for name in ("prompt", "chosen"):
        row = TALK | {name: said(TALK[name][0]["role"], image)}
        with pytest.raises(
            SystemExit, match=f"row 0: {name} is no list of messages .*, a text or texts"
        ):
            load(tmp_path, tokenizer, row)


WRONG = [
    ("chosen is no list of messages", {"chosen": "b"}),
    ("chosen is no list of messages", {"chosen": TALK["chosen"][0]}),
    ("chosen is no list of messages with role and content", {"chosen": [{"role": "assistant"}]}),
    ("rejected is no list of messages", {"rejected": []}),
    ("prompt is no list of messages", {"prompt": "a"}),
    ("prompt is no list of messages with role and content", {"prompt": ["a"]}),
    ("chosen is no list of messages with role and content", {"chosen": said("assistant", None)}),
    ("prompt is no list of messages with role and content", {"prompt": said("user", None)}),
    ("prompt is no list of messages with role and content", {"prompt": said("user", 3)}),
    ("prompt ends with the assistant's message", {"prompt": said("assistant", "a")}),
]


@pytest.mark.parametrize("reason, wrong", WRONG)
def test_the_column_at_fault_is_named(reason, wrong, tmp_path):
    tokenizer = chat(TURN + ASK, tmp_path)
    with pytest.raises(SystemExit, match=f"row 0: {reason}"):
        load(tmp_path, tokenizer, TALK | wrong)
    if "prompt" in wrong and isinstance(wrong["prompt"], list):  # prompts alone are read alike
        with pytest.raises(SystemExit, match=f"row 0: {reason}"):
            load(tmp_path, tokenizer, wrong, prompts_alone=True)


@pytest.mark.parametrize("mark", ["$A <eos>", "<bos> $A <eos>"])
def test_a_token_that_a_tokenizer_puts_behind_a_text_does_not_end_a_prompt(mark):
    tokenizer = letter_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    special = [("<eos>", 1), ("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(mark, special_tokens=special)
    prompts, responses = encode(tokenizer, ["ab", "c"], ["d", "ef"], [1, None])
    first = [tokenizer.bos_token_id] * ("bos" in mark)
    assert prompts == [[*first, 2, 3], [*first, 4]] and responses == [[5, 1], [6, 7]]


def test_a_response_that_would_change_is_named(tmp_path):
    """A word mark makes a space at the beginning of a text that is encoded alone."""
    tokenizer = load_tokenizer(str(REPO / "tests" / "frozen" / "metaspace"))
    good = {"prompt": "ab ac", "chosen": " cd", "rejected": " a b"}
    bad = {"prompt": "ab ", "chosen": "cd", "rejected": "a"}
    told = "row 1: rejected cannot be written in this tokenizer: its tokens read ' a' where it has"
    with pytest.raises(SystemExit, match=f"{told} 'a'"):
        load(tmp_path, tokenizer, good, bad)
    (pair,) = load(tmp_path, tokenizer, good)
    for name in ("chosen", "rejected"):
        assert decode(tokenizer, [pair["prompt"]], [pair[name]]) == ([good[name]], [True])


def test_any_end_ends_a_response(tmp_path):
    """EOS, the template's, and generation_config's: sampled, counted as finished, trained on."""
    tokenizer = chat(TURN + ASK, tmp_path)
    more, end = tokenizer.convert_tokens_to_ids(["h", "<end>"])
    model = tiny_model(vocab_size=len(tokenizer), dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=[1, more])
    model.save_pretrained(tmp_path)
    policy, tokenizer = load_policy(str(tmp_path), 40)
    assert tokenizer.ends == sorted([1, more, end])
    uniforms = torch.rand(200, 20, generator=torch.Generator().manual_seed(0))
    responses = ipo_online.sample(policy, [[2, 3]] * 200, uniforms, tokenizer.ends)
    free = ipo_online.sample(policy, [[2, 3]] * 200, uniforms, [-1])
    for short, long in zip(responses, free):
        stops = [i for i, token in enumerate(long) if token in tokenizer.ends]
        assert short == long[: stops[0] + 1 if stops else None]
    assert {y[-1] for y in responses} >= {1, more, end}
    finished = decode(tokenizer, [[2, 3]] * 200, responses)[1]
    assert finished == [y[-1] in tokenizer.ends for y in responses] and 0 < sum(finished) < 200
    with pytest.raises(SystemExit, match="chosen has a token in its text that ends a response"):
        load(tmp_path, tokenizer, TALK | {"chosen": said("assistant", "bhc")})

    load(tmp_path, tokenizer, *[TALK] * 4)
    words = ["--model", tmp_path, "--dataset", tmp_path / "pairs.jsonl", *SHORT]
    call("ipo_offline.py", *words, "--max-prompt-tokens", 30, "--out", tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "responses" / "3.jsonl")
    assert rows and all(isinstance(row["finished"], bool) for row in rows)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    assert kept.generation_config.eos_token_id == [1, more]
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "policy").chat_template == TURN + ASK
