"""Every script on every family of models, with preference models of its own and of another tokenizer."""

import importlib
import json
import math
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file
from torch.cuda._utils import _get_device_index
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
)

import ipo_offline
import ipo_online
from common import encode, load_policy, load_preference_model, load_tokenizer, pick_device, score
from tests.conftest import (
    REPO,
    SCRIPTS,
    SHARED,
    call,
    letter_tokenizer,
    needs_shared,
    read_jsonl,
    tiny_model,
)

PAIRS = [
    {
        "prompt": "ab"[: 1 + i % 2],
        "chosen": "cd" * (1 + i % 2),
        "rejected": "fgh"[: 1 + i % 3],
        "rejected_finished": i > 3,
    }
    for i in range(12)
]
SIZES = {
    "steps": 3,
    "batch_size": 4,
    "eval_every": 2,
    "eval_prompts": 6,
    "kl_prompts": 4,
    "device": "cpu",
}
LIMITS = {"max_prompt_tokens": 8, "max_response_tokens": 8}


@pytest.fixture
def letters(family, tmp_path):
    """A model, a preference model made from its trunk, and pairs, as folders and a file."""
    tokenizer = letter_tokenizer("<eos>")  # padding is the end token
    model = tiny_model(family, dtype=torch.float32, vocab_size=len(tokenizer))
    model.config.eos_token_id = model.config.pad_token_id = model.generation_config.eos_token_id = (
        tokenizer.eos_token_id
    )
    model.save_pretrained(tmp_path / "model")
    preference_model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=1
    )
    preference_model.save_pretrained(tmp_path / "proxy")
    for name in ("model", "proxy"):
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_on_every_family(script, letters, family):
    module, folder = importlib.import_module(script), str(letters)
    roles = {
        "model": f"{folder}/model",
        "dataset": f"{folder}/pairs.jsonl",
        "golden": f"{folder}/proxy",
    }
    roles |= {"proxy": f"{folder}/proxy"} if not script.endswith("offline") else {}
    module.main(module.Args(**roles, **SIZES, **LIMITS, out=f"{folder}/run", seed=3))
    metrics, evals = (
        read_jsonl(letters / "run" / "metrics.jsonl"),
        read_jsonl(letters / "run" / "evals.jsonl"),
    )
    assert metrics[0]["rewards/margins"] == 0 and metrics[0]["grad_norm"] > 0
    assert [row["step"] for row in evals] == [0, 2, 3] and evals[0]["kl"] == 0 < evals[-1]["kl"]
    assert all(0 <= row["win_rate"] <= 1 for row in evals)
    # the policy that was written is the one that was trained: same family, other weights
    before, after = (
        type(tiny_model(family)).from_pretrained(letters / name) for name in ("model", "run/policy")
    )
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before.state_dict().values(), after.state_dict().values())
    )


@pytest.mark.parametrize("script", ["ipo_offline", "ipo_online"])
def test_parts_and_recomputing_leave_the_trajectory_as_it_is(script, letters, family, monkeypatch):
    """A batch in one part, in four, or in some with gradient checkpointing: 20 steps in float64, to 1e-9 relative."""
    module, folder, seen = importlib.import_module(script), str(letters), []
    monkeypatch.setattr(
        module, "load_policy", lambda *told: (load_policy(*told)[0].double(), load_policy(*told)[1])
    )
    roles = {
        "model": f"{folder}/model",
        "dataset": f"{folder}/pairs.jsonl",
        "golden": f"{folder}/proxy",
    }
    roles |= {"proxy": f"{folder}/proxy"} if not script.endswith("offline") else {}
    for parts, checkpointing in ((1, "off"), (4, "off"), (2, "selective"), (3, "full")):
        options = {
            "gradient_accumulation_steps": parts,
            "gradient_checkpointing": checkpointing,
            "steps": 20,
            "eval_every": 20,
        }
        module.main(module.Args(**roles, **LIMITS, **(SIZES | options), out=f"{folder}/run{parts}"))
        metrics = read_jsonl(letters / f"run{parts}" / "metrics.jsonl")
        weights = load_file(letters / f"run{parts}" / "policy" / "model.safetensors")
        numbers = torch.tensor(
            [[row[key] for key in ("loss", "grad_norm", "rewards/margins")] for row in metrics],
            dtype=torch.float64,
        )
        # a bias on the keys changes no attention: its gradient is rounding alone, which AdamW scales up to full steps
        seen.append(
            (
                numbers,
                torch.cat(
                    [x.flatten() for name, x in weights.items() if not name.endswith("bias")]
                ),
            )
        )
    for numbers, weights in seen[1:]:
        assert torch.allclose(numbers, seen[0][0], rtol=1e-9, atol=1e-9)
        assert weights.dtype == torch.float64 and torch.allclose(
            weights, seen[0][1], rtol=1e-9, atol=1e-12
        )


def test_models_that_cannot_be_used_are_named_in_one_line(tmp_path):
    """A policy that reads backwards, a tokenizer of another model, none at all, one without an end token."""
    tokenizer = letter_tokenizer()
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    encoder = BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes))
    small, large = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32, vocab_size=64)
    endless = letter_tokenizer()
    endless.eos_token = None
    made = {
        "encoder": (encoder, tokenizer),
        "good": (large, tokenizer),
        "bare": (small, None),
        "endless": (small, endless),
    }
    made["apart"] = small, letter_tokenizer(letters="abcdefghijkl")
    capped = Gemma2Config(
        vocab_size=16, head_dim=8, num_key_value_heads=2, final_logit_softcapping=0.5, **sizes
    )
    made["capped"] = Gemma2ForCausalLM(capped), tokenizer
    mixed = Lfm2Config(
        vocab_size=10,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        **sizes | {"num_hidden_layers": 2},
    )
    made["mixed"] = Lfm2ForCausalLM(mixed), tokenizer
    for name, (model, own) in made.items():
        model.save_pretrained(tmp_path / name)
        own and own.save_pretrained(tmp_path / name)
    tied = {"num_labels": 1, "tie_word_embeddings": True}  # its embeddings could serve for a head
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare", **tied).save_pretrained(
        tmp_path / "proxy"
    )
    tokenizer.save_pretrained(tmp_path / "proxy")
    small.get_input_embeddings().weight.data[0, 0] = math.nan
    small.save_pretrained(tmp_path / "no-number")
    tokenizer.save_pretrained(tmp_path / "no-number")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\0" * 64)
    tokenizer.save_pretrained(tmp_path / "broken")
    for name, reason in (
        (
            "encoder",
            "is no causal language model: what it says of a token depends on the tokens after it",
        ),
        ("apart", "its tokenizer has 14 tokens, its model only 10; they do not belong together"),
        ("capped", "its logits are scaled or capped behind its output layer"),
        ("mixed", "keeps more between tokens than keys and values"),
        ("bare", "no tokenizer can be loaded from it"),
        ("endless", "its tokenizer has no end-of-sequence token"),
        ("broken", "no tokenizer can be loaded from it"),
        ("nowhere", "there is no such folder, so no tokenizer can be loaded from it"),
        ("proxy", "is a preference model, no causal language model"),
        ("no-number", "its logits are no finite numbers; its weights are broken"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {tmp_path}/{name}: {reason}") as error:
            load_policy(str(tmp_path / name), "cpu", 16)
        assert "\n" not in str(error.value)
    load_policy(
        str(tmp_path / "good"), "cpu", 16
    )  # more embeddings than tokens are common: padded for speed
    for file in (tmp_path / "proxy").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        SystemExit, match=f"^error: {tmp_path}/proxy: no tokenizer can be loaded from it"
    ):
        load_preference_model(str(tmp_path / "proxy"), tokenizer, "cpu", 8, 8)


def test_a_vocabulary_padded_for_speed_is_sampled_judged_and_read_back(tmp_path):
    """A policy with more embeddings than tokens samples ids that mean none: scores are of the text, saved pairs have them."""
    tokenizer = letter_tokenizer()
    models = {
        "model": tiny_model(dtype=torch.float32, vocab_size=64),
        "small": tiny_model(dtype=torch.float32),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    preference_model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "small", num_labels=1
    )
    preference_model.save_pretrained(tmp_path / "proxy")
    tokenizer.save_pretrained(tmp_path / "proxy")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    roles = {"model": f"{tmp_path}/model", "golden": f"{tmp_path}/proxy"}
    online = {
        "dataset": f"{tmp_path}/pairs.jsonl",
        "proxy": f"{tmp_path}/proxy",
        "out": f"{tmp_path}/online",
        "save_pairs": True,
    }
    ipo_online.main(ipo_online.Args(**roles, **online, **SIZES, **LIMITS))
    saved = read_jsonl(tmp_path / "online" / "online_pairs" / "train.jsonl")
    assert any(max(row["chosen_ids"]) >= len(tokenizer) for row in saved)
    offline = {
        "dataset": f"{tmp_path}/online/online_pairs",
        "out": f"{tmp_path}/offline",
        "shuffle": "none",
    }
    ipo_offline.main(ipo_offline.Args(**roles, **offline, **SIZES, **LIMITS))
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("online", "offline")]
    assert metrics[0] == metrics[1]
    for sides in (("small", "model"), ("model", "small")):  # whichever is padded
        policies = [tmp_path / side for side in sides]
        told = [
            "--proxy",
            tmp_path / "proxy",
            "--dataset",
            tmp_path / "pairs.jsonl",
            "--out",
            tmp_path / "-".join(sides),
        ]
        limits = ["--max-prompt-tokens", 8, "--max-response-tokens", 8]
        call("-m", "prepare.pairs", "--policies", *policies, *told, *limits, "--device", "cpu")


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_in_a_model_folder_is_not_run(tmp_path):
    """Weights as a booby-trapped pickle instead of safetensors: refused, not opened."""
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    letter_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(SystemExit, match="no causal language model can be loaded from it"):
        load_policy(str(tmp_path / "model"), "cpu", 16)
    assert not (tmp_path / "sprung").exists()


@needs_shared
def test_a_preference_model_of_another_tokenizer_labels_every_step(letters, family):
    """The letters' policy, judged by a trunk of the story model: the preference model reads the text in its own tokens."""
    import ipo_online

    source = SHARED / "models" / "stories260K"
    torch.manual_seed(0)
    preference_model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    preference_model.save_pretrained(letters / "stories")
    load_tokenizer(str(source)).save_pretrained(letters / "stories")
    policy_tokenizer = load_tokenizer(str(letters / "model"))
    assert (
        load_preference_model(
            str(letters / "stories"), policy_tokenizer, "cpu", 32, 32
        ).policy_tokenizer
        is policy_tokenizer
    )
    roles = {name: str(letters / "stories") for name in ("proxy", "golden")}
    roles |= {"model": str(letters / "model"), "dataset": str(letters / "pairs.jsonl")}
    ipo_online.main(ipo_online.Args(**roles, **SIZES, **LIMITS, out=str(letters / "run")))
    metrics, evals = (
        read_jsonl(letters / "run" / "metrics.jsonl"),
        read_jsonl(letters / "run" / "evals.jsonl"),
    )
    assert [row["step"] for row in evals] == [0, 2, 3] and {row["ties"] for row in metrics} != {1.0}
    # between two evaluations a verdict moves by what the own score of the policy's own text moved: the baseline stays
    preference_model, seen = (
        load_preference_model(str(letters / "stories"), policy_tokenizer, "cpu", 32, 32),
        [],
    )
    for step in (0, 3):
        rows = read_jsonl(letters / "run" / "responses" / f"{step}.jsonl")
        texts = [[row[name] for row in rows] for name in ("prompt", "response", "finished")]
        prompts, responses, _ = encode(preference_model.tokenizer, *texts)
        values = score(preference_model.model, [x + y for x, y in zip(prompts, responses)])
        seen.append(torch.tensor([row["win_rate_margin"] for row in rows]) - values)
    assert torch.allclose(*seen, atol=1e-4)


def test_nothing_loads_a_pickle_or_foreign_code():
    """No line of the project asks for either."""
    sources = [
        path
        for folder in (".", "prepare", "paper", "benchmarks", "tools")
        for path in (REPO / folder).glob("*.py")
    ]
    assert len(sources) > 15
    for path in sources:
        text = path.read_text()
        assert not re.search(
            r"trust_remote_code|import pickle|torch\.load\(|weights_only|allow_pickle|use_safetensors.*False",
            text,
        )


def test_a_cpu_may_have_its_number():
    assert pick_device("cpu:0") == "cpu:0"


def test_a_gpu_is_chosen_by_its_number(monkeypatch):
    """As far as can be told without one: plain cuda stays the current one, a number makes it the current one."""
    chosen, zeros = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device))
    )
    assert [pick_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda",
        "cuda",
        "cuda:1",
        "cpu",
    ]
    assert chosen == [1]
