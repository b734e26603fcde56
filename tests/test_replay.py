"""The saved online pairs, and the replay of Appendix F: offline learning from them is the online run again."""

import importlib
import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from common import (
    Prompt,
    decode,
    generator,
    load_pairs,
    load_policy,
    load_preference_model,
    load_tokenizer,
    margin,
)
from ipo_online import sample
from prepare.__main__ import Args, split_by_prompt
from tests.conftest import SHARED, call, letter_tokenizer, needs_shared, read_jsonl, tiny_model
from tests.test_resume import begin, steps_taken, wait_for

SIZES = [
    "--steps",
    12,
    "--batch-size",
    4,
    "--eval-every",
    6,
    "--eval-prompts",
    8,
    "--kl-prompts",
    4,
]


@pytest.mark.parametrize("loss", ["ipo", "bo2"])
def test_replay_on_the_reviews_task(loss, setup, tmp_path):
    """Offline with the saved online pairs in their order is the online run to the bit; in another order it is another run."""
    common = ["--setup", setup, *SIZES, "--out"]
    call(f"{loss}_online.py", *common, tmp_path / "online", "--save-pairs")
    kept = read_jsonl(tmp_path / "online" / "online_pairs" / "train.jsonl")
    assert len(kept) == 48 and all(row["margin"] >= 0 for row in kept)
    saved = ["--dataset", tmp_path / "online" / "online_pairs", "--shuffle"]
    call(f"{loss}_offline.py", *common, tmp_path / "offline", *saved, "none")
    for name in ("metrics.jsonl", "evals.jsonl", "policy/model.safetensors", "responses/12.jsonl"):
        assert (tmp_path / "online" / name).read_bytes() == (
            tmp_path / "offline" / name
        ).read_bytes(), name
    call(f"{loss}_offline.py", *common, tmp_path / "shuffled", *saved, "all")
    losses = [
        [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")]
        for name in ("online", "shuffled")
    ]
    assert losses[0][1:] != losses[1][1:] and len(set(losses[0])) > 6


@needs_shared
def test_replay_on_a_real_language_model(tmp_path):
    """stories260K, whose tokenizer would not give back every response from its text."""
    model, data = SHARED / "models" / "stories260K", SHARED / "data" / "stories" / "pairs.jsonl.gz"
    limits = ["--max-prompt-tokens", 64, "--max-response-tokens", 64]
    train = [
        "-m",
        "prepare.preference_model",
        "train",
        "--model",
        model,
        "--dataset",
        data,
        "--steps",
        3,
        "--batch-size",
        4,
    ]
    call(*train, *limits, "--out", tmp_path / "proxy")
    common = ["--model", model, *SIZES, *limits, "--golden", tmp_path / "proxy", "--out"]
    online = [
        "ipo_online.py",
        *common,
        tmp_path / "online",
        "--dataset",
        data,
        "--proxy",
        tmp_path / "proxy",
        "--save-pairs",
    ]
    call(*online)
    call(
        "ipo_offline.py",
        *common,
        tmp_path / "offline",
        "--dataset",
        tmp_path / "online" / "online_pairs",
        "--shuffle",
        "none",
    )
    for name in ("metrics.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "online" / name).read_bytes() == (
            tmp_path / "offline" / name
        ).read_bytes(), name


def test_a_killed_run_goes_on_with_its_saved_pairs(setup, tmp_path):
    """What it had appended after its last checkpoint is cut back: no pair is there twice. What it had sampled ahead is sampled
    again, from the same policy."""
    command = ["ipo_online.py", "--setup", setup, *SIZES, "--steps", 40, "--sync-every", 9]
    command += ["--save-pairs", "--resume", "--out"]
    process = begin(*command, tmp_path / "killed")
    wait_for(lambda: steps_taken(tmp_path / "killed", since=0) > 22, process)
    process.kill()
    process.communicate()
    assert (tmp_path / "killed" / "checkpoint").is_dir()
    call(*command, tmp_path / "killed")
    call(*command, tmp_path / "whole")
    for name in ("online_pairs/train.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes(), name


@pytest.mark.parametrize("script", ["ipo_online", "ipo_hybrid"])
def test_sampling_ahead(script, setup, tmp_path):
    """Batches sampled ahead are samples of an older policy: those of 1 and of 5 agree until the policy has been updated, and
    with all of them sampled before the first update, the responses are the reference's own."""
    kept = {}
    for ahead in (1, 5, 12):
        folder, module = tmp_path / f"{ahead}", importlib.import_module(script)
        told = {"steps": 12, "batch_size": 4, "eval_every": 6, "eval_prompts": 8, "kl_prompts": 4}
        module.main(
            module.Args(
                setup=str(setup), out=str(folder), save_pairs=True, sync_every=ahead, **told
            )
        )
        rows = read_jsonl(folder / "online_pairs" / "train.jsonl")
        assert len(rows) == 48 and not (folder / "checkpoint").exists()
        kept[ahead] = [rows[4 * step : 4 * step + 4] for step in range(12)]
    prompts = [[[row["prompt_ids"] for row in batch] for batch in saved] for saved in kept.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    assert kept[1][0] == kept[5][0] and kept[5][:5] == kept[12][:5]
    assert kept[1][1:5] != kept[5][1:5] and kept[5][5:] != kept[12][5:]

    reference, tokenizer = load_policy(str(setup / "sft"), "cpu", 49)
    for step, batch in enumerate(kept[12]):
        uniforms = torch.rand(2, 4, 33, generator=generator(1, step, "sample"))
        sampled = batch if script == "ipo_online" else batch[2:]
        uniforms = uniforms[:, 4 - len(sampled) :].flatten(0, 1)
        both = sample(
            reference, [Prompt(row["prompt_ids"]) for row in sampled] * 2, uniforms, tokenizer
        )
        for i, row in enumerate(sampled):
            assert sorted([row["chosen_ids"], row["rejected_ids"]]) == sorted(
                [both[i], both[i + len(sampled)]]
            )


def test_text_would_not_give_back_the_ids(tmp_path):
    """A small BPE tokenizer: what a model samples is often not how its text is encoded. As ids it comes back, as text not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=40, special_tokens=["<pad>", "<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(["abab cdcd abcd dcba bacd"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    )
    prompts = [tokenizer("abcd").input_ids] * 40
    uniforms = torch.rand(80, 8, generator=torch.Generator().manual_seed(0))
    model = tiny_model(vocab_size=len(tokenizer))
    first, second = (sample(model, prompts, part, tokenizer) for part in uniforms.chunk(2))
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "margin")
    rows = [dict(zip(columns, row)) for row in zip(prompts, first, second, [0.5] * 40)]
    (tmp_path / "online_pairs").mkdir()
    (tmp_path / "online_pairs" / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    pairs = load_pairs(str(tmp_path / "online_pairs"), tokenizer, 8, 8, "error")
    assert [(p["chosen"], p["rejected"]) for p in pairs] == list(zip(first, second)) and pairs[0][
        "text"
    ] == "abcd"
    texts, finished = decode(tokenizer, prompts, first)
    again = [tokenizer("abcd" + text).input_ids[len(prompts[0]) :] for text in texts]
    assert sum(y[: len(y) - done] != ids for y, done, ids in zip(first, finished, again)) > 4


def test_saved_pairs_of_another_model_are_refused(tmp_path):
    row = {"prompt_ids": [2], "chosen_ids": [3, 11], "rejected_ids": [4], "margin": 0.0}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        SystemExit,
        match="row 0: has ids beyond the model's 10 tokens; it is another model's saved pairs",
    ):
        load_pairs(str(tmp_path), letter_tokenizer(), 8, 8, "error")
    (tmp_path / "train.jsonl").write_text(
        json.dumps(row | {"chosen_ids": [3]}) + "\n" + json.dumps({"prompt": "a"})
    )
    with pytest.raises(
        SystemExit, match="row 1: prompt_ids, chosen_ids and rejected_ids must be lists of ids"
    ):
        load_pairs(str(tmp_path), letter_tokenizer(), 8, 8, "error")
    (tmp_path / "train.jsonl").write_text(
        json.dumps({name: [3] for name in row if name != "margin"})
    )
    assert (
        load_pairs(str(tmp_path), letter_tokenizer(), 8, 8, "error")[0]["margin"] is None
    )  # ids of another origin
    (tmp_path / "train.jsonl").write_text(json.dumps(row | {"chosen_ids": [3] * 9}))
    with pytest.raises(
        SystemExit, match="row 0: is longer than --max-prompt-tokens or --max-response-tokens"
    ):
        load_pairs(str(tmp_path), letter_tokenizer(), 8, 8, "error")


def test_saved_pairs_are_no_data_for_a_golden_model_of_another_tokenizer(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4], "margin": 1.0})
    )
    with pytest.raises(
        SystemExit,
        match="has saved pairs of --model's token ids, which --golden-model need not share; give texts",
    ):
        split_by_prompt(
            Args(str(tmp_path / "setup"), model="m", dataset=str(tmp_path), golden_model="other")
        )
    assert not (tmp_path / "setup").exists()


def test_pairs_from_one_policy_or_two(setup, runs, tmp_path):
    """Prompts of the data, row by row; labels are the preference model's; an offline script trains on them."""
    asked = ["--dataset", setup / "d_golden", "--pairs", 24]
    command = ["-m", "prepare.pairs", "--proxy", setup / "golden", *asked, "--policies"]
    final = runs["ipo_online"] / "policy"
    call(*command, final, "--out", tmp_path / "one")
    call(*command, setup / "sft", final, "--out", tmp_path / "two")
    tokenizer = load_tokenizer(str(setup / "sft"))
    preference_model = load_preference_model(str(setup / "golden"), tokenizer, "cpu", 16, 33)
    asked = [
        pair["prompt"] for pair in load_pairs(str(setup / "d_golden"), tokenizer, 16, 33, "error")
    ][:24]
    for name in ("one", "two"):
        pairs = load_pairs(str(tmp_path / name / "online_pairs"), tokenizer, 16, 33, "error")
        assert [pair["prompt"] for pair in pairs] == asked
        margins = margin(
            preference_model, asked, [p["chosen"] for p in pairs], [p["rejected"] for p in pairs]
        )
        assert (margins >= 0).all() and margins.tolist() == pytest.approx(
            [p["margin"] for p in pairs], abs=1e-4
        )
    sizes = [
        "--setup",
        setup,
        *SIZES[2:],
        "--steps",
        2,
        "--eval-every",
        2,
        "--out",
        tmp_path / "run",
    ]
    call("ipo_offline.py", *sizes, "--dataset", tmp_path / "two" / "online_pairs")
    done = call(*command, final, final, final, "--out", tmp_path / "three", code=1)
    assert (
        done.stderr == "error: --policies: one or two, not 3\n"
        and not (tmp_path / "three").exists()
    )
    other = shutil.copytree(setup / "sft", tmp_path / "other")  # the same words, another one ends
    told = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": "."}))
    done = call(*command, final, other, "--out", tmp_path / "three", code=1)
    assert "have different end tokens, . and" in done.stderr and not (tmp_path / "three").exists()
