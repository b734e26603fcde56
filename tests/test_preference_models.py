"""Preference models: margins, ties, labels."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from common import (
    PreferenceModel,
    encode,
    load_pairs,
    load_preference_model,
    load_tokenizer,
    margin,
    mean_stderr,
    score,
    wins,
)
from prepare.preference_model import agreement, preference_nll, relabelled
from tests.conftest import SHARED, call, letter_tokenizer, needs_shared, read_jsonl

PROMPTS = [[2, 3, 4], [5], [6, 7], [2, 2]]
FIRST = [[3, 1], [4, 5, 6, 7], [8], [9, 9, 1]]
SECOND = [[7, 7, 7], [8, 1], [8], [9, 9]]


def tiny_preference_model(form: str, folder, pad: str = "<pad>", labels: int = 1):
    tokenizer = letter_tokenizer(pad)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=10, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    config.num_labels, config.pad_token_id, config.preference_form = (
        labels,
        tokenizer.pad_token_id,
        form,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_preference_model(str(folder), tokenizer, "cpu", 16, 16)


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_margins_are_antisymmetric_and_identical_responses_tie(form, tmp_path):
    preference_model = tiny_preference_model(form, tmp_path)
    assert preference_model.form == form
    margins = margin(preference_model, PROMPTS, FIRST, SECOND)
    assert torch.equal(margins, -margin(preference_model, PROMPTS, SECOND, FIRST))
    assert margins[2] == 0 and (margins[[0, 1, 3]] != 0).all()


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_the_form_decides_what_is_subtracted(pad, tmp_path):
    """Against a loop of single sequences through the model's own parts; one that ended with EOS is read at its end token."""
    for form in ("pointwise", "pairwise"):
        preference_model = tiny_preference_model(form, tmp_path / form, pad)
        eos = preference_model.tokenizer.eos_token_id
        sides = [
            [[eos if token == 1 else token for token in y] for y in side]
            for side in (FIRST, SECOND)
        ]

        @torch.no_grad()
        def single(ids, model=preference_model.model):
            return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()

        for x, y1, y2, m in zip(
            PROMPTS, *sides, margin(preference_model, PROMPTS, *sides).tolist()
        ):
            if form == "pointwise":
                expected = single(x + y1) - single(x + y2)
            else:
                r12, r21 = (
                    torch.tensor(single(x + a + [eos] + b + [eos])).sigmoid()
                    for a, b in ((y1, y2), (y2, y1))
                )
                expected = (r12 - r21).item()
            assert m == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_scores_that_are_kept_change_no_margin(form, tmp_path):
    """The baseline's, at every evaluation the same; a pairwise preference model has none to keep."""
    preference_model = tiny_preference_model(form, tmp_path)
    for first in (FIRST, SECOND, [[4, 1], *FIRST[1:]]):
        kept, anew = (
            margin(preference_model, PROMPTS, first, SECOND, store_second=some)
            for some in (True, False)
        )
        assert kept.tolist() == pytest.approx(anew.tolist(), abs=1e-5) and torch.equal(
            kept == 0, anew == 0
        )
    assert (preference_model.stored is not None) == (form == "pointwise")


def test_an_encoder_reads_no_padding():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = AutoModelForSequenceClassification.from_config(
        BertConfig(vocab_size=10, num_labels=1, **sizes)
    ).eval()
    sequences = [x + y for x, y in zip(PROMPTS * 2, FIRST + SECOND)]
    assert len(set(map(len, sequences))) > 2 and not hasattr(model, "score")
    with torch.no_grad():
        alone = [model(torch.tensor([ids])).logits.item() for ids in sequences]
        assert score(model, sequences).tolist() == pytest.approx(alone, abs=1e-5)


def test_training_losses_by_hand(tmp_path):
    """Pointwise: Bradley-Terry. Pairwise: cross-entropy of the order that the coin chose (Eq. 5)."""
    log_sigmoid = torch.nn.functional.logsigmoid
    model = tiny_preference_model("pointwise", tmp_path).model
    coins = torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        nll = preference_nll(model, "pointwise", 1, PROMPTS, FIRST, SECOND, coins)
        scores = [score(model, [x + y for x, y in zip(PROMPTS, side)]) for side in (FIRST, SECOND)]
        assert torch.allclose(nll, -log_sigmoid(scores[0] - scores[1]), atol=1e-5)
        nll = preference_nll(model, "pairwise", 1, PROMPTS, FIRST, SECOND, coins)
        for x, y1, y2, coin, got in zip(PROMPTS, FIRST, SECOND, coins, nll):
            a, b = (y2, y1) if coin else (y1, y2)
            logit = score(model, [x + a + [1] + b + [1]])[0]
            assert got.item() == pytest.approx(
                -log_sigmoid(-logit if coin else logit).item(), abs=1e-5
            )


def test_a_preference_model_with_another_tokenizer_reads_the_text(tmp_path):
    """The same letters under other ids, in another order: the verdict is that on the letters."""
    preference_model = tiny_preference_model("pointwise", tmp_path)
    policy_tokenizer = letter_tokenizer(letters="hgfedcba")
    other = PreferenceModel(preference_model.model, preference_model.tokenizer, policy_tokenizer)
    texts = (["ab", "h"], ["cd", "e"], ["fg", "hhh"])
    ids = {}
    for tokenizer in (preference_model.tokenizer, policy_tokenizer):
        prompts, first, _ = encode(tokenizer, texts[0], texts[1], [True, False])
        ids[tokenizer] = prompts, first, encode(tokenizer, texts[0], texts[2], [False, True])[1]
    assert ids[preference_model.tokenizer] != ids[policy_tokenizer]
    assert torch.allclose(
        margin(other, *ids[policy_tokenizer]),
        margin(preference_model, *ids[preference_model.tokenizer]),
        atol=1e-6,
    )


def test_a_preference_model_reads_a_conversation_in_its_own_template(tmp_path):
    """Policy and preference model write a turn differently; the latter gets the turns its own way, not the policy's text."""
    preference_model = tiny_preference_model("pointwise", tmp_path)
    policy_tokenizer = letter_tokenizer(letters="hgfedcba")
    policy_tokenizer.chat_template = "{% for m in messages %}a{{ m.content }}{% endfor %}"
    preference_model.tokenizer.chat_template = (
        "{% for m in messages %}b{{ m.content }}c{% endfor %}"
    )
    row = {"prompt": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]}
    row |= {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", "ff"), ("rejected", "g"))
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (pair,) = load_pairs(str(tmp_path / "pairs.jsonl"), policy_tokenizer, 8, 8, "error")
    assert pair["text"] == "adae" and pair["prompt"].messages == row["prompt"]
    columns = [[pair[name]] * 2 for name in ("prompt", "chosen", "rejected")]
    own = [preference_model.tokenizer(text).input_ids for text in ("bdcbec", "ff<eos>", "g<eos>")]
    expected = margin(preference_model, *([ids] for ids in own))
    other = PreferenceModel(preference_model.model, preference_model.tokenizer, policy_tokenizer)
    assert torch.allclose(margin(other, *columns), expected.repeat(2), atol=1e-6)
    preference_model.tokenizer.chat_template = None  # then there is only the text
    own[0] = preference_model.tokenizer("adae").input_ids
    assert torch.allclose(
        margin(other, *columns),
        margin(preference_model, *([ids] for ids in own)).repeat(2),
        atol=1e-6,
    )
    assert not torch.allclose(margin(other, *columns), expected.repeat(2), atol=1e-4)


def test_a_preference_model_of_the_same_words_keeps_its_own_template(tmp_path):
    """The policy's ids are taken where vocabularies are equal, and templates too, or where the preference model has none."""
    for own, policys, same in (
        ("a", "b", False),
        ("a", None, False),
        ("a", "a", True),
        (None, "b", True),
    ):
        preference_model = tiny_preference_model("pointwise", tmp_path)
        preference_model.tokenizer.chat_template = own
        preference_model.tokenizer.save_pretrained(tmp_path)
        policy_tokenizer = letter_tokenizer()
        policy_tokenizer.chat_template = policys
        preference_model = load_preference_model(str(tmp_path), policy_tokenizer, "cpu", 16, 16)
        assert preference_model.policy_tokenizer is (None if same else policy_tokenizer)
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)


def test_a_score_that_is_no_number_labels_nothing(tmp_path):
    preference_model = tiny_preference_model("pointwise", tmp_path)
    preference_model.model.score.weight.data[0, 3] = float("nan")
    with pytest.raises(
        SystemExit, match=f"^error: {tmp_path}: gives a text a score that is no finite number"
    ):
        margin(preference_model, PROMPTS, FIRST, SECOND)


def test_a_text_beyond_the_preference_models_context_is_refused(tmp_path):
    """In its own tokens a text may be longer than in the policy's, where lengths were checked."""
    preference_model = tiny_preference_model("pointwise", tmp_path)
    assert margin(preference_model, [[2] * 60], [[3] * 4], [[4]]).isfinite().all()
    with pytest.raises(
        SystemExit, match="a text has 65 of the preference model's tokens, it reads 64; lower"
    ):
        margin(preference_model, [[2] * 60], [[3] * 5], [[4]])


def test_two_labels_are_refused_in_one_line(tmp_path):
    tiny_preference_model("pointwise", tmp_path / "one")
    with pytest.raises(SystemExit, match="a preference model has one label, this model has 2"):
        tiny_preference_model("pointwise", tmp_path / "two", labels=2)


def test_relabelling_moves_every_column_with_its_response():
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "chosen_finished": True,
        "rejected_finished": False,
        "chosen_x_y": 1,
    }
    assert relabelled(row, 2.0) == row | {"margin": 2.0}
    assert relabelled(row, 0.0) == row | {"margin": 0.0}
    swapped = {
        "prompt": "p",
        "chosen": "b",
        "rejected": "a",
        "chosen_finished": False,
        "rejected_finished": True,
    }
    assert relabelled(row, -0.5) == swapped | {"rejected_x_y": 1, "margin": 0.5}


def test_relabelled_data_agree_with_their_preference_model(setup):
    """After relabelling, golden/ puts chosen first in every pair of d_golden, and some labels did change."""
    tokenizer = load_tokenizer(str(setup / "golden"))
    preference_model = load_preference_model(str(setup / "golden"), tokenizer, "cpu", 16, 33)
    before, after = (read_jsonl(setup / name / "train.jsonl") for name in ("d_initial", "d_golden"))
    pairs = load_pairs(str(setup / "d_golden"), tokenizer, 16, 33, "error")
    margins = margin(
        preference_model,
        *([pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected")),
    )
    assert (margins >= 0).all()
    assert margins.tolist() == pytest.approx([row["margin"] for row in after], abs=1e-6)
    assert [{b["chosen"], b["rejected"]} for b in before] == [
        {a["chosen"], a["rejected"]} for a in after
    ]
    changed = [b["chosen"] != a["chosen"] for b, a in zip(before, after)]
    assert 0 < sum(changed) < len(changed)
    assert all(
        a["chosen_ground_truth_score"] == b[f"{'rejected' if c else 'chosen'}_ground_truth_score"]
        for a, b, c in zip(after, before, changed)
    )


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_both_forms_learn(form, setup, tmp_path):
    """A preference that is easy to see, praise against complaint, is learned from 300 pairs in either form."""
    rows = [f'{{"prompt": "Hotel in May, staff and bed:", "chosen": " The {a} was {g}.", "rejected": " The {b} was {c}."}}'
            for a in ("staff", "bed", "room") for b in ("staff", "bed", "room", "view", "breakfast")
            for g in ("friendly", "cosy", "quiet", "airy") for c in ("rude", "damp", "dirty", "noisy", "dingy")]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    command = [
        "-m",
        "prepare.preference_model",
        "train",
        "--form",
        form,
        "--model",
        setup / "sft",
        "--steps",
        60,
    ]
    done = call(
        *command,
        "--dataset",
        tmp_path / "pairs.jsonl",
        "--out",
        tmp_path / "proxy",
        "--batch-size",
        16,
    )
    assert "held-out pairs" in done.stdout
    assert read_jsonl(tmp_path / "proxy" / "agreement.json")[0]["agreement"] > 0.9
    assert (
        load_preference_model(
            str(tmp_path / "proxy"), load_tokenizer(str(setup / "sft")), "cpu", 16, 33
        ).form
        == form
    )


def test_agreement_counts_ties_half(tmp_path):
    preference_model = tiny_preference_model("pointwise", tmp_path)
    pairs = [dict(zip(("prompt", "chosen", "rejected"), row)) for row in zip(PROMPTS, FIRST, FIRST)]
    assert agreement(preference_model, pairs) == {"agreement": 0.5, "ties": 1.0, "pairs": 4}


def test_mean_and_standard_error_by_hand():
    values = torch.tensor([1.0, 0.0, 0.5, 1.0])
    mean, stderr = mean_stderr(values, ["a", "b", "c", "d"])
    assert mean == pytest.approx(0.625) and stderr == pytest.approx(
        (values.double().var() / 4).sqrt().item()
    )
    # the same answers twice over tell nothing new: clustered by prompt, the error stays
    assert mean_stderr(values.repeat(2), ["a", "b", "c", "d"] * 2) == pytest.approx((mean, stderr))
    assert wins(torch.tensor([2.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]


@needs_shared
def test_any_reward_model_with_one_label_is_pointwise(tmp_path):
    """A model saved without a preference form, as the Hub's are."""
    model = AutoModelForSequenceClassification.from_pretrained(
        SHARED / "models" / "stories260K", num_labels=1
    )
    tokenizer = load_tokenizer(str(SHARED / "models" / "stories260K"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    preference_model = load_preference_model(str(tmp_path), tokenizer, "cpu", 32, 32)
    assert preference_model.form == "pointwise" and preference_model.policy_tokenizer is None
    assert margin(preference_model, [[1, 400]], [[401, 1]], [[402]]).item() != 0
