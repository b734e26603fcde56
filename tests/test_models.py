"""Which models a run can start from: every family, every kind that is refused in one line, dropout,
a padded vocabulary, a preference model of another tokenizer."""

import json
import math
import re

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import ipo_online
from common import encode, load_policy, load_preference_model, load_tokenizer, score
from tests.conftest import REPO, SCRIPTS, SHORT, call, letter_tokenizer, read_jsonl, tiny_model

COLUMNS = "prompt", "chosen", "rejected", "rejected_finished"
ROWS = [("ab"[: 1 + i % 2], "cd" * (1 + i % 2), "fgh"[: 1 + i % 3], i > 3) for i in range(12)]
LIMITS = ["--max-prompt-tokens", 8, "--max-response-tokens", 8]


def save(folder, model, tokenizer):
    model.float().save_pretrained(folder)
    tokenizer and tokenizer.save_pretrained(folder)


def roles(folder, family="llama", pad="<eos>", score_pad="<eos>", **changes):
    """A policy, a preference model and pairs, made in a folder; the words that name them."""
    tokenizer = letter_tokenizer(pad)
    model = tiny_model(family, vocab_size=len(tokenizer))
    model.config.update({"eos_token_id": tokenizer.eos_token_id, **changes})
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    save(folder / "model", model, tokenizer)
    kind, scorer = AutoModelForSequenceClassification, letter_tokenizer(score_pad)
    trunk = tiny_model(family, seed=1, vocab_size=len(scorer))
    save(folder / "trunk", trunk, scorer)
    save(folder / "proxy", kind.from_pretrained(folder / "trunk", num_labels=1), scorer)
    lines = [json.dumps(dict(zip(COLUMNS, row))) for row in ROWS]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    words = ["--model", folder / "model", "--dataset", folder / "pairs.jsonl"]
    return [*words, "--proxy", folder / "proxy", "--golden", folder / "proxy", *LIMITS]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_and_writes_the_family_it_was_given(script, tmp_path):
    """Llama aside: all other tests have it."""
    family = ("gpt2", "gpt_neox", "qwen2")[SCRIPTS.index(script) % 3]
    call(f"{script}.py", *roles(tmp_path, family), *SHORT, "--out", tmp_path / "run")
    metrics, evals = (read_jsonl(tmp_path / "run" / f"{n}.jsonl") for n in ("metrics", "evals"))
    assert metrics[0]["rewards/margins"] == 0 and metrics[0]["grad_norm"] > 0
    assert [row["step"] for row in evals] == [0, 2, 3] and evals[0]["kl"] == 0 < evals[-1]["kl"]
    assert all(0 <= row["win_rate"] <= 1 for row in evals)
    folders = tmp_path / "model", tmp_path / "run" / "policy"
    before, after = map(AutoModelForCausalLM.from_pretrained, folders)
    assert type(before) is type(after) and after.dtype == torch.float32
    assert any(not torch.equal(*both) for both in zip(before.parameters(), after.parameters()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("script", ["ipo_offline", "ipo_online"])
def test_micro_batches_and_recomputing_change_no_number(script, family, tmp_path):
    """20 steps in float64, to 1e-9."""
    words, seen = roles(tmp_path, family), []
    words += ["--steps", 20, "--batch-size", 4, "--eval-every", 20, "--eval-at", "--kl-prompts", 4]
    for options in ([4], [1], [3, "--gradient-checkpointing"]):
        out = tmp_path / str(options[0])
        call("tests/in_double.py", script, *words, "--out", out, "--micro-batch-size", *options)
        model = AutoModelForCausalLM.from_pretrained(out / "policy", dtype="auto")
        # a bias on the keys changes no attention: its gradient is rounding alone
        weights = [w.flatten() for name, w in model.named_parameters() if "bias" not in name]
        metrics = [list(row.values()) for row in read_jsonl(out / "metrics.jsonl")]
        seen.append((torch.tensor(metrics, dtype=torch.float64), torch.cat(weights)))
    for metrics, weights in seen[1:]:
        assert torch.allclose(metrics, seen[0][0], rtol=1e-9, atol=1e-9)
        assert weights.dtype == torch.float64 and torch.allclose(weights, seen[0][1], atol=1e-9)


@pytest.mark.parametrize("family, name", [("gpt2", "resid_pdrop"), ("llama", "attention_dropout")])
def test_a_policy_that_was_trained_with_dropout_is_trained_without(family, name, tmp_path):
    """h is 0 at the first step, and recomputing changes no later step."""
    words, seen = roles(tmp_path, family, **{name: 0.5}) + [*SHORT, "--batch-size", 1], []
    assert json.loads((tmp_path / "model" / "config.json").read_text())[name] == 0.5
    for options in ([], ["--gradient-checkpointing"]):
        out = tmp_path / f"run{len(options)}"
        call("ipo_offline.py", *words, "--out", out, *options)
        seen.append(read_jsonl(out / "metrics.jsonl"))
        assert seen[-1][0]["rewards/chosen"] == seen[-1][0]["rewards/rejected"] == 0
    losses = [[row["loss"] for row in metrics] for metrics in seen]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "num_key_value_heads": 2}
ROPE = {"rope_type": "longrope", "original_max_position_embeddings": 24, "rope_theta": 1e4}
ROPE |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
LONG = {"max_position_embeddings": 512, "original_max_position_embeddings": 24}
DIFFERS = "a text read piece by piece, as in sampling, differs from a text of {} tokens whole"
# kind of model: its sizes, and what is said of it where it is asked for 40 tokens; None: it works
KINDS = {
    "BertLMHeadModel": (SIZES, DIFFERS),
    "Phi3ForCausalLM": (SIZES | LONG | {"rope_parameters": ROPE}, DIFFERS),
    "RwkvForCausalLM": (SIZES | {"context_length": 64}, DIFFERS),
    "MambaForCausalLM": (SIZES | {"state_size": 4}, "'batch_select_indices'"),
    "OpenAIGPTLMHeadModel": (
        {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "must match the size of tensor",
    ),
    "BloomForCausalLM": ({"hidden_size": 16, "n_layer": 2, "n_head": 2}, None),
    "OPTForCausalLM": (SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16}, None),
    "MixtralForCausalLM": (SIZES | {"num_local_experts": 2, "router_jitter_noise": 0.5}, None),
    "Gemma3ForConditionalGeneration": (
        {
            "text_config": SIZES | {"head_dim": 8, "vocab_size": 10, "attention_dropout": 0.5},
            "vision_config": SIZES | {"image_size": 28, "patch_size": 14},
        },
        DIFFERS,
    ),
    "Gemma2ForCausalLM": (SIZES | {"head_dim": 8, "final_logit_softcapping": 0.5}, None),
    "MistralForCausalLM": (SIZES | {"sliding_window": 4}, None),
}


def naive_sample(model, prompt, uniforms):
    """The inverse CDF of the whole forward pass, a token at a time."""
    ids = list(prompt)
    for u in uniforms:
        cdf = model(torch.tensor([ids])).logits[0, -1].softmax(0).cumsum(0)
        ids.append(int(torch.searchsorted(cdf, u * cdf[-1:], right=True)))
    return ids[len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_samples_what_it_says_of_a_whole_text_or_is_refused(kind, tmp_path):
    sizes, reason = KINDS[kind]
    torch.manual_seed(0)
    kind, sizes = getattr(transformers, kind), sizes | {"vocab_size": 10, "bos_token_id": None}
    model = kind(kind.config_class(eos_token_id=1, pad_token_id=0, **sizes))
    for parameter in model.parameters():
        parameter.mul_(10 if parameter.dim() > 1 else 1)
    save(tmp_path, model, letter_tokenizer())
    sampled = 40 if reason is None else 20 if "Phi3" in kind.__name__ else 0
    for tokens in (40, 60) if reason else ():
        told = f"is no causal language model that can be sampled from.*{reason}.*"
        with pytest.raises(SystemExit, match=f"^error: {tmp_path}: {told}$".format(tokens)):
            load_policy(str(tmp_path), tokens)
    if sampled:  # a longrope model within its first context is as good as any
        model, _ = load_policy(str(tmp_path), sampled)
        prompts, uniforms = [[2, 3, 4], [5], [6, 7, 2, 3, 9]], torch.rand(3, sampled - 5)
        told = ipo_online.sample(model, prompts, uniforms, [-1])
        model.train()  # nothing is drawn there either
        assert told == [naive_sample(model, x, row) for x, row in zip(prompts, uniforms)]


def test_models_that_cannot_be_used_are_named_in_one_line(tmp_path, monkeypatch):
    roles(tmp_path, pad="<pad>", score_pad="<pad>")
    endless, broken = letter_tokenizer(), tiny_model()
    endless.eos_token = None
    broken.get_input_embeddings().weight.data[0, 0] = math.nan
    own = {"apart": letter_tokenizer(letters="abcdefghijkl"), "bare": None, "endless": endless}
    for name in ("adapter", "apart", "bare", "endless", "foreign", "half", "nan", "pickle"):
        model = broken if name == "nan" else tiny_model()
        save(tmp_path / name, model, own.get(name, letter_tokenizer()))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    code = json.dumps({"model_type": "foreign", "auto_map": code})
    (tmp_path / "foreign" / "config.json").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run code"))
    (tmp_path / "half" / "model.safetensors").write_bytes(b"\0" * 64)
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(tiny_model().float().state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    reasons = {
        "adapter": "has an adapter; merge it into its model, and name that model's folder",
        "foreign": r"no causal language model can be loaded from it \(.*custom code.*\)",
        "apart": "its tokenizer has 14 tokens, its model only 10; they do not belong together",
        "bare": r"no tokenizer can be loaded from it \(.*\)",
        "endless": "its tokenizer has no EOS token; set eos_token in tokenizer_config.json",
        "nan": "its logits are no finite numbers; its weights are broken",
        "half": r"no causal language model can be loaded from it \(.*\)",
        "pickle": r"no causal language model can be loaded from it \(.*\)",
        "nowhere": "there is no such folder, so no tokenizer can be loaded from it",
        "proxy": "is no causal language model: it has no weights for lm_head.weight",
    }
    for name, reason in reasons.items():
        with pytest.raises(SystemExit, match=f"^error: {tmp_path}/{name}: {reason}$"):
            load_policy(str(tmp_path / name), 16)
    path = tmp_path / "proxy" / "config.json"  # tied, the embeddings could serve for a head
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(SystemExit, match="proxy: is a preference model, no causal language model$"):
        load_policy(str(tmp_path / "proxy"), 16)


def test_ids_beyond_the_tokenizer_are_sampled_scored_and_read_back(tmp_path):
    """A policy with more embeddings than tokens samples them; the scores are of the text."""
    words = roles(tmp_path, pad="<pad>", score_pad="<pad>")
    save(tmp_path / "model", tiny_model(vocab_size=64), letter_tokenizer())
    call("ipo_online.py", *words, *SHORT, "--save-pairs", "--out", tmp_path / "online")
    pairs = tmp_path / "online" / "online_pairs"
    assert any(max(row["chosen_ids"]) >= 10 for row in read_jsonl(pairs / "train.jsonl"))
    words += ["--dataset", pairs, "--shuffle", "none"]
    call("ipo_offline.py", *words, *SHORT, "--out", tmp_path / "replay")
    online, replay = (tmp_path / run / "metrics.jsonl" for run in ("online", "replay"))
    assert online.read_bytes() == replay.read_bytes()


def test_the_baselines_scores_stay_whatever_tokenizer_reads_them(tmp_path):
    """Between two evaluations a margin moves by what the policy's own text moved."""
    words = roles(tmp_path, pad="<eos>", score_pad="<pad>")  # each letter has another id
    call("ipo_online.py", *words, *SHORT, "--out", tmp_path / "run")
    policy_tokenizer, seen = load_tokenizer(str(tmp_path / "model")), []
    golden = load_preference_model(str(tmp_path / "proxy"), policy_tokenizer, (8, 8), "cpu")
    assert golden.policy_tokenizer is policy_tokenizer
    for step in (0, 3):
        rows = read_jsonl(tmp_path / "run" / "responses" / f"{step}.jsonl")
        texts = [[row[name] for row in rows] for name in ("prompt", "response")]
        ends = [golden.tokenizer.eos_token_id if row["finished"] else None for row in rows]
        own = [x + y for x, y in zip(*encode(golden.tokenizer, *texts, ends))]
        margins = torch.tensor([row["win_rate_margin"] for row in rows])
        seen.append(margins - score(golden.model, own).detach())
    assert torch.allclose(*seen, atol=1e-4) and seen[0].std() > 0.01


def test_no_line_asks_for_a_pickle_or_foreign_code():
    folders = ".", "prepare", "paper", "benchmarks", "tools"
    sources = [path for folder in folders for path in (REPO / folder).glob("*.py")]
    asks = r"trust_remote_code(?!=False)|import pickle|torch\.load\(|weights_only *="
    asks += "|use_safetensors.*False"
    assert sources and not [path for path in sources if re.search(asks, path.read_text())]
