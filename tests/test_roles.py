"""Who is made from what: each stage of a setup by its own command, and rows that are held out."""

import json
import shutil
from collections import Counter

import pytest

import ipo_online
from common import decode, encode, generator, load_policy
from prepare.__main__ import Args, split_by_prompt
from prepare.preference_model import relabel, train_preference_model
from prepare.sft import train_sft
from tests.conftest import MINIATURE, SHORT, call, letter_tokenizer, read_jsonl, stage


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_setup_is_what_its_stages_make_alone(setup, tmp_path):
    """Which model and data each begins from, which preference model it asks, with which seed."""
    d_initial, d_golden = setup / "d_initial", setup / "d_golden"
    own = setup / "untrained", d_initial, tmp_path / "sft"
    golden = setup / "untrained_golden", d_initial, tmp_path / "golden"
    proxy = setup / "sft", d_golden, tmp_path / "proxy"
    stage(train_sft, *own, seed=7, sft_steps=30)
    stage(train_preference_model, *golden, 20, 1007)
    stage(relabel, setup / "golden", d_initial, tmp_path / "d_golden")
    stage(train_preference_model, *proxy, 20, 7)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.name for path in made} == {"sft", "golden", "d_golden", "proxy"}
    for path in made:
        assert path.read_bytes() == (setup / path.relative_to(tmp_path)).read_bytes(), path
    words = ["--model", setup / "sft", "--dataset", d_golden, "--proxy", setup / "golden"]
    words += ["--seed", 7, "--steps", 3, "--eval-at", "--kl-prompts", 4, "--eval-prompts", 4]
    call("ipo_online.py", *words, "--out", tmp_path / "run")
    baseline = weights(setup / "baseline")
    assert weights(tmp_path / "run" / "policy") == baseline != weights(setup / "sft")


def test_the_baseline_is_what_the_baseline_policy_samples(setup):
    """To prompts that it was trained on, and to held-out ones."""
    policy, tokenizer = load_policy(str(setup / "baseline"), 49)
    stored = read_jsonl(setup / "baseline" / "responses.jsonl")
    for split in ("train", "test"):
        rows = [row for row in stored if row["split"] == split]
        data = {row["prompt"] for row in read_jsonl(setup / "d_golden" / f"{split}.jsonl")}
        texts = [row["prompt"] for row in rows]
        assert len(set(texts)) == 12 and set(texts) <= data
        prompts = encode(tokenizer, texts, texts, [None] * len(texts))[0]
        noise, args = generator(7, split, "golden policy"), Args(eval_batch_size=5)
        sampled = ipo_online.sample_all(policy, prompts, noise, tokenizer.ends, args)
        told = list(zip(*decode(tokenizer, prompts, sampled)))
        assert [(row["response"], row["finished"]) for row in rows] == told


def test_a_baseline_policy_half_made_from_other_models_begins_again(setup, tmp_path):
    shutil.copytree(setup, tmp_path / "again")
    for name in ("proxy", "baseline"):
        shutil.rmtree(tmp_path / "again" / name)
    (tmp_path / "again" / "baseline.run").mkdir()
    (tmp_path / "again" / "baseline.run" / "left.txt").write_text("by other models")
    call("-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out", tmp_path / "again")
    assert weights(tmp_path / "again" / "baseline") == weights(setup / "baseline")
    assert not (tmp_path / "again" / "baseline.run").exists()


def test_a_setup_with_less_praise_keeps_golden_and_baseline(setup, tmp_path):
    """--mood changes the data and what learns from them. A baseline policy whose
    held-out prompts are trained on here is refused before anything is trained."""
    made = tmp_path / "made"
    words = ["-m", "prepare", "--pairs", 400, *MINIATURE, "--mood", 0.25, "--golden-steps", 0]
    words += ["--golden-model", setup / "golden", "--baseline"]
    call(*words, setup / "baseline", "--seed", 7, "--out", made)
    kept = [path.relative_to(setup) for path in (setup / "baseline").iterdir()]
    for path in (*kept, "golden/model.safetensors", "golden/config.json", "golden/tokenizer.json"):
        assert (made / path).read_bytes() == (setup / path).read_bytes(), path
    for path in ("d_initial/train.jsonl", "d_golden/train.jsonl", "d_golden/test.jsonl"):
        assert (made / path).read_bytes() != (setup / path).read_bytes(), path
    assert weights(made / "sft") != weights(setup / "sft")
    assert weights(made / "proxy") != weights(setup / "proxy")
    call("ipo_online.py", "--setup", made, *SHORT, "--out", tmp_path / "run")
    asked = [row["prompt"] for row in read_jsonl(tmp_path / "run" / "responses" / "0.jsonl")]
    stored = read_jsonl(setup / "baseline" / "responses.jsonl")
    assert asked == [row["prompt"] for row in (*stored[:8], *stored[12:20])]
    other = ["--seed", 10, "--out", tmp_path / "other"]
    error = call(*words, setup / "baseline", *other, code=1).stderr
    assert "baseline: its held-out prompts are trained on; keep --seed" in error
    assert {path.name for path in (tmp_path / "other").iterdir()}.isdisjoint({"sft", "baseline"})
    shutil.rmtree(tmp_path / "other")
    error = call(*words, setup / "sft", *other, code=1).stderr
    assert f"{setup}/sft/responses.jsonl: cannot be read as train data (there is no such" in error


@pytest.mark.parametrize("mood, told", [(1.5, "at most 1"), (0, "a finite number, above 0")])
def test_a_mood_outside_its_range_is_refused(mood, told, tmp_path):
    error = call("-m", "prepare", "--mood", mood, "--out", tmp_path / "setup", code=1).stderr
    assert error == f"error: --mood {float(mood)}: must be {told}\n"
    assert not (tmp_path / "setup").exists()


def learn_sft(*words) -> None:
    stage(train_sft, *words, sft_steps=4, batch_size=16)


def learn_preferences(*words) -> None:
    stage(train_preference_model, *words, 4, 1, batch_size=16)


@pytest.mark.parametrize("learn", [learn_sft, learn_preferences], ids=["sft", "proxy"])
def test_held_out_rows_are_never_learned(learn, setup, tmp_path):
    """Those of test.jsonl. 40 pairs, 16 a step: each of train.jsonl is read within four steps."""
    rows = (setup / "d_initial" / "train.jsonl").read_text().splitlines()[:60]
    made = []
    for train, test in ((0, 40), (0, 50), (1, 40)):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        (folder / "train.jsonl").write_text("\n".join(rows[train : train + 40]))
        (folder / "test.jsonl").write_text("\n".join(rows[test : test + 10]))
        learn(setup / "sft", folder, folder / "out")
        made.append(weights(folder / "out"))
    assert made[0] == made[1] != made[2]


def test_no_prompt_is_both_trained_on_and_held_out(tmp_path):
    """And no row is lost: of 30 prompts, most with several pairs, two are held out, a twentieth
    rounded up."""
    letter_tokenizer().save_pretrained(tmp_path / "model")
    prompts, responses = [a + b for a in "abcde" for b in "abcdef"], ("cd", "ef", "g")
    rows = [{"prompt": x, "chosen": y, "rejected": "h"} for y in responses for x in prompts]
    lines = [json.dumps(row) for row in rows[:-7]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    split_by_prompt(Args(*(str(tmp_path / name) for name in ("setup", "model", "pairs.jsonl"))))
    files = (tmp_path / "setup" / "d_initial" / f"{split}.jsonl" for split in ("train", "test"))
    train, test = (file.read_text().splitlines() for file in files)
    assert Counter(train + test) == Counter(lines)
    train, test = ({json.loads(line)["prompt"] for line in part} for part in (train, test))
    assert len(test) == 2 and len(train) == 28 and not train & test
