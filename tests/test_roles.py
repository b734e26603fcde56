"""Who is made from what: each stage of a setup again by its own command, held-out rows, and the writers of sampled pairs."""

import json
import shutil
from collections import Counter

import pytest

import ipo_online
from common import (
    decode,
    encode,
    generator,
    load_pairs,
    load_policy,
    load_preference_model,
    load_tokenizer,
    margin,
    sample_in_parts,
)
from prepare.__main__ import Args, split_by_prompt
from tests.conftest import MINIATURE, call, letter_tokenizer, read_jsonl

LIMITS = 16, 33


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_start_is_what_its_stages_make_alone(setup, tmp_path):
    """Which model each stage begins from, which data it reads, which preference model it asks, with which seed."""
    models, seven = (
        ["--model", setup / "untrained", "--dataset", setup / "d_initial"],
        ["--seed", 7],
    )
    golden_models = ["--model", setup / "untrained_golden", *models[2:], "--seed", 1007]
    proxy_models = ["--model", setup / "sft", "--dataset", setup / "d_golden", *seven]
    call("-m", "prepare.sft", *models, *seven, "--steps", 30, "--out", tmp_path / "sft")
    preference_model = "-m", "prepare.preference_model"
    call(*preference_model, "train", *golden_models, "--steps", 20, "--out", tmp_path / "golden")
    call(
        *preference_model,
        "relabel",
        "--golden",
        setup / "golden",
        *models[2:],
        "--out",
        tmp_path / "d_golden",
    )
    call(*preference_model, "train", *proxy_models, "--steps", 20, "--out", tmp_path / "proxy")
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.name for path in made} == {"sft", "golden", "d_golden", "proxy"}
    for path in made:
        assert path.read_bytes() == (setup / path.relative_to(tmp_path)).read_bytes(), path
    roles = ["--setup", setup, *proxy_models, "--proxy", setup / "golden"]
    call(
        "ipo_online.py",
        *roles,
        "--steps",
        3,
        "--eval-prompts",
        4,
        "--kl-prompts",
        4,
        "--out",
        tmp_path / "run",
    )
    assert (
        weights(tmp_path / "run" / "policy")
        == weights(setup / "baseline")
        != weights(setup / "sft")
    )


def test_the_baseline_is_what_the_baseline_policy_samples(setup):
    """To prompts that it was trained on, and to held-out ones."""
    policy, tokenizer = load_policy(str(setup / "baseline"), "cpu", sum(LIMITS))
    for split in ("train", "test"):
        rows = [
            row
            for row in read_jsonl(setup / "baseline" / "responses.jsonl")
            if row["split"] == split
        ]
        data = [row["prompt"] for row in read_jsonl(setup / "d_golden" / f"{split}.jsonl")]
        texts = [row["prompt"] for row in rows]
        assert len(set(texts)) == 12 and set(texts) <= set(data)
        prompts = encode(tokenizer, texts, texts, [True] * len(texts))[0]
        random = generator(7, split, "golden policy")
        sampled = sample_in_parts(
            ipo_online.sample, policy, prompts, LIMITS[1], random, tokenizer, 256
        )
        assert [(row["response"], row["finished"]) for row in rows] == list(
            zip(*decode(tokenizer, prompts, sampled))
        )


def test_a_baseline_policy_half_made_from_other_models_is_begun_anew(setup, tmp_path):
    shutil.copytree(setup, tmp_path / "again")
    for name in ("proxy", "baseline"):
        shutil.rmtree(tmp_path / "again" / name)
    (tmp_path / "again" / "baseline.run").mkdir()
    (tmp_path / "again" / "baseline.run" / "left.txt").write_text("by other models")
    call("-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out", tmp_path / "again")
    assert weights(tmp_path / "again" / "baseline") == weights(setup / "baseline")
    assert not (tmp_path / "again" / "baseline.run").exists()


@pytest.fixture(scope="module")
def rows(setup) -> list[str]:
    return (setup / "d_initial" / "train.jsonl").read_text().splitlines()[:60]


@pytest.fixture
def learn(setup, tmp_path):
    """What a preference model, or SFT, learns in a few steps from the lines of train.jsonl and, if there are, test.jsonl."""

    def learn(kind: str, train: list[str], test: list[str] | None, *settings) -> bytes:
        module = {"sft": ["prepare.sft"], "proxy": ["prepare.preference_model", "train"]}[kind]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "train.jsonl").write_text("\n".join(train))
        if test:
            (folder / "test.jsonl").write_text("\n".join(test))
        source, settings = (
            folder if test else folder / "train.jsonl",
            ["--steps", 4, "--batch-size", 16, *settings],
        )
        call(
            "-m",
            *module,
            "--model",
            setup / "sft",
            "--dataset",
            source,
            *settings,
            "--out",
            folder / "out",
        )
        return weights(folder / "out")

    return learn


@pytest.mark.parametrize("kind", ["sft", "proxy"])
def test_held_out_rows_are_never_learned(kind, rows, learn):
    """Of a folder test.jsonl; 40 pairs, 16 a step: each is read within four steps."""
    told = learn(kind, rows[:40], rows[40:50])
    assert (
        told
        == learn(kind, rows[:40], rows[50:])
        != learn(kind, rows[1:40] + rows[50:51], rows[40:50])
    )


def test_the_last_twentieth_of_a_plain_file_is_held_out(rows, learn):
    told = learn("proxy", rows[:40], None)  # 38 and 2
    assert (
        told
        == learn("proxy", rows[:38] + rows[50:52], None)
        != learn("proxy", rows[:37] + rows[50:51] + rows[38:40], None)
    )


def test_a_preference_model_learns_from_the_first_pairs_alone(rows, learn):
    told = learn("proxy", rows[:40], rows[50:], "--pairs", 20)
    assert (
        told
        == learn("proxy", rows[:20] + rows[40:50], rows[50:], "--pairs", 20)
        != learn("proxy", rows[:40], rows[50:])
    )


def test_no_prompt_is_both_trained_on_and_held_out(tmp_path):
    """And no row is lost: 30 prompts, some with several pairs, of which two, a twentieth rounded up, are held out."""
    letter_tokenizer().save_pretrained(tmp_path / "model")
    prompts = [a + b for a in "abcde" for b in "abcdef"]
    lines = [
        json.dumps({"prompt": x, "chosen": y, "rejected": "h"})
        for y in ("cd", "ef", "g")
        for x in prompts
    ]
    lines = lines[: len(lines) - 7]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    split_by_prompt(
        Args(str(tmp_path / "setup"), str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"))
    )
    files = (tmp_path / "setup" / "d_initial" / f"{split}.jsonl" for split in ("train", "test"))
    train, test = (file.read_text().splitlines() for file in files)
    assert Counter(train + test) == Counter(lines)
    train, test = ({json.loads(line)["prompt"] for line in part} for part in (train, test))
    assert len(test) == 2 and len(train) == 28 and not train & test


def test_each_policy_writes_its_side_of_a_pair(setup, runs, tmp_path):
    """Of one policy both, with noise of its own for each; the preference model, not the order, says which is chosen."""
    final, tokenizer = runs["ipo_online"] / "policy", load_tokenizer(str(setup / "sft"))
    preference_model = load_preference_model(str(setup / "golden"), tokenizer, "cpu", *LIMITS)
    prompts = [
        pair["prompt"] for pair in load_pairs(str(setup / "d_golden"), tokenizer, *LIMITS, "error")
    ][:24]
    asked = ["--proxy", setup / "golden", "--dataset", setup / "d_golden", "--pairs", 24]
    command = ["-m", "prepare.pairs", *asked, "--policies"]
    for name, writers in (("one", [final]), ("two", [setup / "sft", final])):
        said = call(*command, *writers, "--out", tmp_path / name).stdout
        written = []
        for side, writer in enumerate((writers[0], writers[-1])):
            policy, random = (
                load_policy(str(writer), "cpu", sum(LIMITS))[0],
                generator(1, side, "pairs"),
            )
            written.append(
                sample_in_parts(
                    ipo_online.sample, policy, prompts, LIMITS[1], random, tokenizer, 256
                )
            )
        margins = margin(preference_model, prompts, *written).tolist()
        assert 0 < sum(m > 0 for m in margins) < 24 and written[0] != written[1]
        expected = [(y1, y2) if m >= 0 else (y2, y1) for y1, y2, m in zip(*written, margins)]
        kept = read_jsonl(tmp_path / name / "online_pairs" / "train.jsonl")
        assert [(row["chosen_ids"], row["rejected_ids"]) for row in kept] == expected
        share = sum(m > 0 for m in margins) / 24
        assert (
            f"24 pairs, the first response preferred in {share:.1%}, ties {margins.count(0.0)}"
            in said
        )
