"""Preference models: margins, other tokenizers and templates, training, relabelling."""

import json
from itertools import product

import pytest
import torch
import transformers
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from common import (
    encode,
    load_pairs,
    load_preference_model,
    load_tokenizer,
    margin,
    mean_stderr,
    score,
    wins,
)
from prepare.preference_model import (
    columns_of,
    preference_nll,
    relabelled,
    train_preference_model,
)
from tests.conftest import letter_tokenizer, read_jsonl, stage

PROMPTS = [[2, 3, 4], [5], [6, 7], [2, 2]]
FIRST = [[3, 1], [4, 5, 6, 7], [8], [9, 9, 1]]
SECOND = [[7, 7, 7], [8, 1], [8], [9, 9]]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 10}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(folder, form="pointwise", pad="<pad>", labels=1, template=None, policys=None):
    """A random preference model, saved and loaded. policys: the policy's tokenizer (the same)."""
    tokenizer = letter_tokenizer(pad)
    config = {"num_labels": labels, "pad_token_id": tokenizer.pad_token_id, **SIZES}
    config |= {"preference_form": form} if form else {}
    config = LlamaConfig(max_position_embeddings=64, **config)
    tokenizer.chat_template = template
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_preference_model(str(folder), policys or tokenizer, (16, 16), "cpu")


@pytest.mark.parametrize("form", ["pointwise", "pairwise", None])  # None: any reward model
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
@torch.no_grad()
def test_margins_by_hand(pad, form, tmp_path):
    """Single sequences through the model's own parts, read at their last token. The order of the
    responses decides the sign alone, equal ones tie, and scores that are kept change nothing."""
    golden = tiny(tmp_path, form, pad)
    assert golden.pairwise == (form == "pairwise") and golden.policy_tokenizer is None
    eos, model = golden.tokenizer.eos_token_id, golden.model
    sides = FIRST, SECOND
    first, second = ([[eos if i == 1 else i for i in y] for y in side] for side in sides)

    def single(ids):
        return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])[0]

    def by_hand(x, y1, y2):
        if form != "pairwise":
            return (single(x + y1) - single(x + y2)).item()
        orders = x + y1 + [eos] + y2 + [eos], x + y2 + [eos] + y1 + [eos]
        return (single(orders[0]).sigmoid() - single(orders[1]).sigmoid()).item()

    margins = margin(golden, PROMPTS, first, second)
    expected = [by_hand(*row) for row in zip(PROMPTS, first, second)]
    assert margins.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(margins, -margin(golden, PROMPTS, second, first))
    assert margins[2] == 0 and (margins[[0, 1, 3]] != 0).all()
    for some in (first, [[4, eos], *first[1:]], second):
        kept = margin(golden, PROMPTS, some, second, keep_second=True)
        assert torch.allclose(kept, margin(tiny(tmp_path, form, pad), PROMPTS, some, second))
        assert (kept[[y == z for y, z in zip(some, second)]] == 0).all()
    assert len(golden.scores) == 4 * (form != "pairwise")


def test_an_encoder_reads_no_padding():
    torch.manual_seed(0)
    config = BertConfig(num_labels=1, **SIZES)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    sequences = [x + y for x, y in zip(PROMPTS * 2, FIRST + SECOND)]
    with torch.no_grad():
        alone = [model(torch.tensor([ids])).logits.item() for ids in sequences]
        assert score(model, sequences).tolist() == pytest.approx(alone, abs=1e-5)


@torch.no_grad()
def test_training_losses_by_hand(tmp_path):
    """Pointwise: Bradley-Terry. Pairwise: cross-entropy of the coin's order (Eq. 5)."""
    model, coins = tiny(tmp_path).model, torch.tensor([0, 1, 0, 1])
    nll = preference_nll(model, False, 1, PROMPTS, FIRST, SECOND, coins)
    scores = [score(model, [x + y for x, y in zip(PROMPTS, side)]) for side in (FIRST, SECOND)]
    assert torch.allclose(nll, -logsigmoid(scores[0] - scores[1]), atol=1e-5)
    nll = preference_nll(model, True, 1, PROMPTS, FIRST, SECOND, coins)
    for x, y1, y2, coin, got in zip(PROMPTS, FIRST, SECOND, coins, nll):
        a, b = (y2, y1) if coin else (y1, y2)
        logit = score(model, [x + a + [1] + b + [1]])[0]
        expected = -logsigmoid(-logit if coin else logit).item()
        assert got.item() == pytest.approx(expected, abs=1e-5)


def test_a_text_means_the_same_in_any_tokenizers_ids(tmp_path):
    policys, prompts, margins = letter_tokenizer(letters="hgfedcba"), ["ab", "h"], []
    for tokenizer in (letter_tokenizer(), policys):
        eos = tokenizer.eos_token_id
        golden = tiny(tmp_path, policys=tokenizer)
        ids, first = encode(tokenizer, prompts, ["cd", "e"], [eos, None])
        second = encode(tokenizer, prompts, ["fg", "hhh"], [None, eos])[1]
        margins.append(margin(golden, ids, first, second))
    assert golden.policy_tokenizer is policys and torch.allclose(*margins, atol=1e-6)


def test_a_conversation_is_read_in_the_preference_models_own_template(tmp_path):
    """Not in the policy's text; where the preference model has no template there is only that."""
    policys = letter_tokenizer(letters="hgfedcba")
    turns = "{% for m in messages %}a{{ m.content }}c{% endfor %}"
    turns += "{% if add_generation_prompt %}a{% endif %}"
    policys.chat_template = turns.replace("c{", "{")
    asked = [{"role": "system", "content": "d"}, {"role": "user", "content": "e"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("ff", "g")]
    row = {"prompt": asked, "chosen": answers[0], "rejected": answers[1]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (pair,) = load_pairs(str(tmp_path / "pairs.jsonl"), policys, (8, 8), "error")
    assert pair["text"] == "adaea"
    columns = columns_of([pair, pair])
    own = turns.replace("a{{", "b{{").replace("a{%", "b{%")
    for template, text, end in ((own, "bdcbecb", "c<eos>"), (None, "adaea", "<eos>")):
        golden = tiny(tmp_path / text, template=template, policys=policys)
        ids = [[golden.tokenizer(words).input_ids] for words in (text, f"ff{end}", f"g{end}")]
        expected = margin(tiny(tmp_path / text), *ids).repeat(2)
        assert torch.allclose(margin(golden, *columns), expected, atol=1e-6)


def test_the_policys_ids_are_taken_where_they_mean_the_same(tmp_path):
    """Vocabularies are equal, and templates too, or the preference model has none."""
    policys, found = letter_tokenizer(), []
    for own, policys.chat_template in (("a", "b"), ("a", None), ("a", "a"), (None, "b")):
        golden = tiny(tmp_path / str(len(found)), template=own, policys=policys)
        found.append(golden.policy_tokenizer is None)
    assert found == [False, False, True, True]


def test_what_cannot_be_scored_is_named(tmp_path):
    """A text longer than the context in the model's own tokens; no number; two labels."""
    golden, start = tiny(tmp_path), f"^error: {tmp_path}: "
    assert margin(golden, [[2] * 60], [[3] * 4], [[4]]).isfinite().all()
    with pytest.raises(SystemExit, match=f"{start}reads at most 64 tokens, 65 may be"):
        margin(golden, [[2] * 60], [[3] * 5], [[4]])
    golden.model.score.weight.data[0, 3] = float("nan")
    with pytest.raises(SystemExit, match=f"{start}gives a text a score that is no finite number$"):
        margin(golden, PROMPTS, FIRST, SECOND)
    with pytest.raises(SystemExit, match=f"{start}has 2 labels; a preference model has one$"):
        tiny(tmp_path, labels=2)


ENCODERS = {k: SIZES[k] for k in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
ENCODERS |= {"intermediate_size": 32, "max_position_embeddings": 64}
SEQ2SEQ = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 1}
KINDS = {  # kind of model: its sizes, and why it is refused; None: it works
    "Roberta": (ENCODERS | {"max_position_embeddings": 66, "pad_token_id": 1}, None),
    "DebertaV2": (ENCODERS | {"relative_attention": True, "pos_att_type": ["p2c"]}, None),
    "ModernBert": (ENCODERS | {"classifier_pooling": "mean"}, None),
    "CTRL": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 32, "n_positions": 64}, None),
    "FNet": (ENCODERS, "a longer text beside changes a score"),
    "XLNet": ({"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}, "reads at most -1 tokens"),
    "Bart": (SEQ2SEQ | {"max_position_embeddings": 64}, "of any text .*<eos>"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_scores_each_text_as_if_it_were_alone_or_is_refused(kind, tmp_path):
    """Up to its context of 64 tokens; RoBERTa counts positions from its padding id."""
    sizes, reason = KINDS[kind]
    kind, tokenizer = getattr(transformers, f"{kind}ForSequenceClassification"), letter_tokenizer()
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    torch.manual_seed(0)
    model = kind(kind.config_class(**ids | sizes, vocab_size=10, num_labels=1))
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.dim() > 1 else 1)
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    load = lambda y: load_preference_model(str(tmp_path), tokenizer, (32, y), "cpu")  # noqa: E731
    if reason:
        with pytest.raises(SystemExit, match=f"^error: {tmp_path}: .*{reason}[^\n]*$"):
            load(32)
        return
    with pytest.raises(SystemExit, match="reads at most 64 tokens, 65 may be asked of it"):
        load(33)
    golden, second = load(32), [[3, 3]] * 3
    first = [[2, 3, 4, 5] * 15, [6, 7], [8, 9, 4, 1]]
    together = margin(golden, [[4] * 4] * 3, first, second)
    apart = [margin(golden, [[4] * 4], [a], [b]) for a, b in zip(first, second)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5) and together.abs().min() > 1e-4
    with pytest.raises(SystemExit, match="reads 64 tokens, a text has 65; lower the --max"):
        margin(golden, [[4] * 4], [[2] * 61], [[3]])


def test_relabelling_moves_every_column_with_its_response():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_x_y": 1}
    row |= {"chosen_finished": True, "rejected_finished": False}
    assert [relabelled(row, m) for m in (2.0, 0.0)] == [row | {"margin": m} for m in (2.0, 0.0)]
    swapped = {"prompt": "p", "chosen": "b", "rejected": "a", "rejected_x_y": 1}
    swapped |= {"chosen_finished": False, "rejected_finished": True}
    assert relabelled(row, -0.5) == swapped | {"margin": 0.5}


def test_relabelled_data_agree_with_their_preference_model(setup):
    """In d_golden/ golden/ prefers each chosen response by its margin, and some labels changed."""
    source, tokenizer = str(setup / "golden"), load_tokenizer(str(setup / "golden"))
    golden = load_preference_model(source, tokenizer, (16, 33), "cpu")
    before, after = (read_jsonl(setup / name / "train.jsonl") for name in ("d_initial", "d_golden"))
    pairs = load_pairs(str(setup / "d_golden"), tokenizer, (16, 33), "error")
    margins = margin(golden, *columns_of(pairs))
    assert margins.tolist() == pytest.approx([row["margin"] for row in after], abs=1e-6)
    changed = [b["chosen"] != a["chosen"] for b, a in zip(before, after)]
    assert 0 < sum(changed) < len(changed)
    for a, b, swap in zip(after, before, changed):
        assert a == relabelled(b, -a["margin"] if swap else a["margin"])


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_both_forms_learn(form, setup, tmp_path):
    """Praise against complaint, from 120 pairs; the last 5 % are held out."""
    places, prompt = ("staff", "bed", "room", "view", "breakfast"), "Hotel in May, staff and bed:"
    words = product(places[:3], ("cosy", "quiet", "airy", "restful"), places, ("rude", "damp"))
    texts = [(prompt, f" The {a} was {b}.", f" The {c} was {d}.") for a, b, c, d in words]
    rows = [dict(zip(("prompt", "chosen", "rejected"), row)) for row in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = setup / "sft", tmp_path / "pairs.jsonl", tmp_path / "proxy", 60, 1
    stage(train_preference_model, *words, form=form, batch_size=16)
    (found,) = read_jsonl(tmp_path / "proxy" / "agreement.json")
    assert found["agreement"] > 0.9 and found["pairs"] == len(rows) and found["ties"] == 0
    assert found["prefers_longer"] == 0.5 and ("flips_on_swap" in found) == (form == "pairwise")
    proxy = load_preference_model(str(tmp_path / "proxy"), letter_tokenizer(), (16, 33), "cpu")
    assert proxy.pairwise == (form == "pairwise")


def test_a_preference_model_is_taken_as_it_is(tmp_path):
    """--steps 0: its own weights and form; a tie is half an agreement."""
    golden = tiny(tmp_path / "golden", "pairwise")
    names = "prompt_ids", "chosen_ids", "rejected_ids"
    rows = [dict(zip(names, row)) for row in zip(PROMPTS, FIRST, SECOND)]
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = tmp_path / "golden", tmp_path / "data", tmp_path / "out", 0, 1
    limits = {"max_prompt_tokens": 8, "max_response_tokens": 8}
    stage(train_preference_model, *words, batch_size=1, **limits)
    own, taken = (tmp_path / name / "model.safetensors" for name in ("golden", "out"))
    assert own.read_bytes() == taken.read_bytes()
    assert load_preference_model(str(taken.parent), golden.tokenizer, (8, 8), "cpu").pairwise
    share = ((margin(golden, PROMPTS, FIRST, SECOND) > 0).sum().item() + 0.5) / 4
    (found,) = read_jsonl(tmp_path / "out" / "agreement.json")
    told = {"agreement": share, "pairs": 4, "ties": 0.25}
    assert found.items() > told.items() and share % 0.25 == 0.125
    sign = torch.tensor([len(y) - len(z) for y, z in zip(FIRST, SECOND)]).sign()
    signs = margin(golden, PROMPTS, FIRST, SECOND).sign()
    assert found["prefers_longer"] == ((signs * sign + 1) / 2).mean().item()
    orders = (FIRST, SECOND), (SECOND, FIRST)
    first, second = (
        [score(golden.model, [x + y + [1] + z + [1]]).item() > 0 for x, y, z in zip(PROMPTS, *both)]
        for both in orders
    )
    assert found["flips_on_swap"] == sum(a == b for a, b in zip(first, second)) / 4


def test_mean_and_standard_error_by_hand():
    values, names = torch.tensor([1.0, 0.0, 0.5, 1.0]), ["a", "b", "c", "d"]
    expected = pytest.approx((0.625, (values.double().var() / 4).sqrt().item()))
    assert mean_stderr(values, names) == expected
    assert mean_stderr(values.repeat(2), names * 2) == expected  # said twice, it is not surer
    assert mean_stderr(values[:0], []) == (None, None)
    assert wins(torch.tensor([2.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]
