"""The saved online pairs, and the replay of Appendix F: offline learning from them is the online
run again. With --sync-every batches are sampled ahead."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from common import generator, load_pairs, load_policy
from ipo_online import sample
from prepare.__main__ import Args, split_by_prompt
from tests.conftest import call, letter_tokenizer, read_jsonl, write_jsonl
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
    logs = (read_jsonl(run / "metrics.jsonl") for run in (online, tmp_path / "shuffled"))
    losses, others = ([row["loss"] for row in log] for log in logs)
    assert losses[1:] != others[1:] and len(set(losses)) == 12


@pytest.mark.parametrize("script", ["ipo_online", "ipo_hybrid"])
def test_sampling_ahead(script, setup, tmp_path):
    """Batches that are sampled ahead come from an older policy: they agree until the first update,
    and where all are sampled before it, the responses are the reference's own. The proxy says the
    same of every text, and of a tie the first sample is chosen."""
    shutil.copytree(setup / "proxy", tmp_path / "proxy")
    proxy = AutoModelForSequenceClassification.from_pretrained(tmp_path / "proxy")
    torch.nn.init.zeros_(proxy.score.weight)
    proxy.save_pretrained(tmp_path / "proxy")
    words = [f"{script}.py", "--setup", setup, "--proxy", tmp_path / "proxy", *SIZES]
    kept = {}
    for ahead in (1, 5, 12):
        out = tmp_path / str(ahead)
        call(*words, "--sync-every", ahead, "--save-pairs", "--out", out)
        rows = read_jsonl(out / "online_pairs" / "train.jsonl")
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
        prompts = [row["prompt_ids"] for row in sampled]
        for name, noise in zip(("chosen_ids", "rejected_ids"), uniforms[:, -len(sampled) :]):
            responses = sample(reference, prompts, noise, tokenizer.ends)
            assert [row[name] for row in sampled] == responses
        assert {row["margin"] for row in sampled} == {0}


def test_text_would_not_give_back_the_ids(tmp_path):
    """A model may sample a and b where its tokenizer has ab. Ids come back."""
    words = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "ab": 4}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("a", "b")]))
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    tokenizer.ends = [1]
    row = {"prompt_ids": [2, 3], "chosen_ids": [2, 3, 1], "rejected_ids": [4, 2, 3]}
    path = write_jsonl(tmp_path / "pairs.jsonl", [row])
    (pair,) = load_pairs(str(path), tokenizer, (8, 8), "error")
    assert {f"{name}_ids": pair[name] for name in ("prompt", "chosen", "rejected")} == row
    assert pair["text"] == "ab" and tokenizer("ab").input_ids == [4]


def test_saved_pairs_of_another_model_are_refused(tmp_path):
    row = {"prompt_ids": [2], "chosen_ids": [3, 9], "rejected_ids": [4]}
    source = str(write_jsonl(tmp_path / "train.jsonl", [row]))
    assert len(load_pairs(source, letter_tokenizer(), (8, 8), "error")) == 1
    for wrong, told in (
        ({"chosen_ids": [3, 10]}, "chosen_ids must be a list of the model's ids, not empty"),
        ({"prompt_ids": None}, "prompt_ids must be a list of the model's ids, not empty"),
        ({"rejected_ids": [3] * 9}, "rejected has 9 tokens, --max-response-tokens is 8"),
    ):
        write_jsonl(tmp_path / "train.jsonl", [row, row | wrong])
        with pytest.raises(SystemExit, match=f"row 1: {told}"):
            load_pairs(source, letter_tokenizer(), (8, 8), "skip")  # never: the order counts
    letter_tokenizer().save_pretrained(tmp_path / "model")
    args = Args(str(tmp_path / "setup"), str(tmp_path / "model"), source, golden_model="other")
    with pytest.raises(SystemExit, match="has ids of --model, unknown to --golden-model"):
        split_by_prompt(args)
    assert not (tmp_path / "setup").exists()
