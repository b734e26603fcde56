"""The saved online pairs, and the replay of Appendix F: offline learning from them is the online
run again. With --sync-every batches are sampled ahead."""

import gzip
import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from common import decode, generator, load_pairs, load_policy
from ipo_online import sample
from prepare.__main__ import Args, split_by_prompt
from prepare.preference_model import train_preference_model
from tests.conftest import (
    SHARED,
    call,
    letter_tokenizer,
    needs_shared,
    read_jsonl,
    stage,
    tiny_model,
)
from tests.test_resume import assert_equal_runs

SIZES = "--steps 12 --batch-size 4 --eval-every 6 --eval-at 6 --eval-prompts 8 --kl-prompts 4"
SIZES = SIZES.split()


@pytest.mark.parametrize("loss", ["ipo", "bo2"])
def test_replay_on_the_reviews_task(loss, setup, tmp_path):
    """Offline on the saved pairs in their order is the online run, bit for bit; in another order
    it is another run."""
    common, online = ["--setup", setup, *SIZES, "--out"], tmp_path / "online"
    call(f"{loss}_online.py", *common, online, "--save-pairs")
    offline = [f"{loss}_offline.py", "--dataset", online / "online_pairs", *common]
    call(*offline, tmp_path / "offline", "--shuffle", "none")
    assert_equal_runs(tmp_path / "offline", online)
    call(*offline, tmp_path / "shuffled")
    losses = [
        [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]
        for folder in (online, tmp_path / "shuffled")
    ]
    assert losses[0][1:] != losses[1][1:] and len(set(losses[0])) == 12


@needs_shared
def test_replay_on_a_real_language_model(tmp_path):
    """stories260K, whose tokenizer would not give back every response from its text."""
    model, data = SHARED / "models" / "stories260K", SHARED / "data" / "stories" / "pairs.jsonl.gz"
    limits = ["--max-prompt-tokens", 64, "--max-response-tokens", 64]
    with gzip.open(data, "rt") as file:
        (tmp_path / "few.jsonl").write_text("".join(line for line, _ in zip(file, range(60))))
    words = model, tmp_path / "few.jsonl", tmp_path / "proxy", 3, 1
    sizes = {"max_prompt_tokens": 64, "max_response_tokens": 64, "batch_size": 4}
    stage(train_preference_model, *words, **sizes)
    common = ["--model", model, "--proxy", tmp_path / "proxy", *SIZES, *limits, "--out"]
    call("ipo_online.py", *common, tmp_path / "online", "--dataset", data, "--save-pairs")
    replay = ["--dataset", tmp_path / "online" / "online_pairs", "--shuffle", "none"]
    call("ipo_offline.py", *common, tmp_path / "offline", *replay)
    names = ["metrics.jsonl", "policy/model.safetensors"]  # evaluations have other prompts
    assert_equal_runs(tmp_path / "offline", tmp_path / "online", names)


@pytest.mark.parametrize("script", ["ipo_online", "ipo_hybrid"])
def test_sampling_ahead(script, setup, tmp_path):
    """Batches that are sampled ahead come from an older policy: they agree until the first update,
    and where all are sampled before it, the responses are the reference's own."""
    kept = {}
    for ahead in (1, 5, 12):
        words = ["--setup", setup, *SIZES, "--sync-every", ahead, "--save-pairs", "--out"]
        call(f"{script}.py", *words, tmp_path / str(ahead))
        rows = read_jsonl(tmp_path / str(ahead) / "online_pairs" / "train.jsonl")
        assert [row.pop("step") for row in rows] == [step for step in range(12) for _ in range(4)]
        kept[ahead] = [rows[i : i + 4] for i in range(0, 48, 4)]
    one, five, twelve = kept.values()
    prompts = [[row["prompt_ids"] for batch in saved for row in batch] for saved in kept.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    assert one[0] == five[0] and five[:5] == twelve[:5]
    assert one[1:5] != five[1:5] and five[5:] != twelve[5:]

    reference, tokenizer = load_policy(str(setup / "sft"), 49)
    for step, batch in enumerate(twelve):
        sampled = batch if script == "ipo_online" else batch[2:]
        uniforms = torch.rand(2, 4, 33, generator=generator(1, step, "sample"))
        uniforms = uniforms[:, 4 - len(sampled) :].flatten(0, 1)
        prompts = [row["prompt_ids"] for row in sampled]
        both = sample(reference, prompts * 2, uniforms, tokenizer.ends)
        for row, *pair in zip(sampled, both, both[len(sampled) :]):
            assert sorted(pair) == sorted([row["chosen_ids"], row["rejected_ids"]])


def save(folder, rows):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_text_would_not_give_back_the_ids(tmp_path):
    """A model samples what its tokenizer would often encode differently. Ids come back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"vocab_size": 40, "special_tokens": ["<pad>", "<eos>"], "show_progress": False}
    words = ["abab cdcd abcd dcba bacd"] * 20
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(**special))
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    prompts = [tokenizer("abcd").input_ids] * 40
    uniforms = torch.rand(80, 8, generator=torch.Generator().manual_seed(0))
    model = tiny_model(vocab_size=len(tokenizer))
    first, second = (sample(model, prompts, part, [1]) for part in uniforms.chunk(2))
    names = "prompt_ids", "chosen_ids", "rejected_ids"
    rows = [dict(zip(names, ids)) for ids in zip(prompts, first, second)]
    pairs = load_pairs(save(tmp_path, rows), tokenizer, (8, 8), "error")
    assert [(p["prompt"], p["chosen"], p["rejected"]) for p in pairs] == [
        *zip(prompts, first, second)
    ]
    texts, finished = decode(tokenizer, prompts, first)
    again = [tokenizer("abcd" + text).input_ids[len(prompts[0]) :] for text in texts]
    assert sum(y[: len(y) - end] != ids for y, end, ids in zip(first, finished, again)) > 4


def test_saved_pairs_of_another_model_are_refused(tmp_path):
    row = {"prompt_ids": [2], "chosen_ids": [3, 9], "rejected_ids": [4]}
    assert len(load_pairs(save(tmp_path, [row]), letter_tokenizer(), (8, 8), "error")) == 1
    for wrong, told in (
        ({"chosen_ids": [3, 10]}, "chosen_ids must be a list of the model's ids, not empty"),
        ({"prompt_ids": None}, "prompt_ids must be a list of the model's ids, not empty"),
        ({"rejected_ids": [3] * 9}, "rejected has 9 tokens, --max-response-tokens is 8"),
    ):
        with pytest.raises(SystemExit, match=f"row 1: {told}"):
            source = save(tmp_path, [row, row | wrong])
            load_pairs(source, letter_tokenizer(), (8, 8), "skip")  # never: the order counts
    letter_tokenizer().save_pretrained(tmp_path / "model")
    args = Args(str(tmp_path / "setup"), str(tmp_path / "model"), source, golden_model="other")
    with pytest.raises(SystemExit, match="has ids of --model, unknown to --golden-model"):
        split_by_prompt(args)
    assert not (tmp_path / "setup").exists()


def test_a_tie_keeps_the_first_sample_as_chosen(setup, tmp_path):
    """A proxy that says the same of every text: no label is its own."""
    shutil.copytree(setup / "proxy", tmp_path / "proxy")
    proxy = AutoModelForSequenceClassification.from_pretrained(tmp_path / "proxy")
    torch.nn.init.zeros_(proxy.score.weight)
    proxy.save_pretrained(tmp_path / "proxy")
    words = ["--setup", setup, "--proxy", tmp_path / "proxy", *SIZES, "--steps", 1, "--save-pairs"]
    call("ipo_online.py", *words, "--out", tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "online_pairs" / "train.jsonl")
    policy, tokenizer = load_policy(str(setup / "sft"), 49)
    uniforms = torch.rand(2, len(rows), 33, generator=generator(1, 0, "sample"))
    prompts, ends = [row["prompt_ids"] for row in rows], tokenizer.ends
    for name, noise in zip(("chosen_ids", "rejected_ids"), uniforms):
        assert [row[name] for row in rows] == sample(policy, prompts, noise, ends)
    assert {row["margin"] for row in rows} == {0}
