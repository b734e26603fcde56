"""A short run of each script, done over from the files that it leaves, by code of its own: one text at a time, without
batches, padding, caches or parts; sampling alone, tested elsewhere, is theirs. Who judged, whose KL, which label, which
step: all of it must add up."""

import copy
import json
import random
import statistics
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import ipo_online
from common import batch_order, decode, generator, sample_in_parts
from tests.conftest import SCRIPTS, call, letter_tokenizer, made_once, read_jsonl, tiny_model

STEPS, BATCH, RATE, BETA, CLIP, PROMPTS, SEED = 3, 4, 1e-3, 0.4, 0.5, 8, 5
READ = 1  # of the hybrid's batch
SETTINGS = [
    "--steps",
    STEPS,
    "--batch-size",
    BATCH,
    "--learning-rate",
    RATE,
    "--beta",
    BETA,
    "--max-grad-norm",
    CLIP,
]
SETTINGS += [
    "--seed",
    SEED,
    "--eval-every",
    1,
    "--eval-prompts",
    PROMPTS,
    "--kl-prompts",
    5,
    "--save-policies",
]
LOSS = {
    "ipo": lambda h, chosen: (h - 1 / (2 * BETA)) ** 2,
    "dpo": lambda h, chosen: softplus(-BETA * h),
    "slic": lambda h, chosen: torch.relu(1 - BETA * h),
    "bo2": lambda h, chosen: -chosen,
}


@pytest.fixture(scope="module")
def finished(setup, tmp_path_factory):
    """script -> its run, made when it is first asked for."""

    def run(script):
        command = [
            f"{script}.py",
            "--setup",
            setup,
            *SETTINGS,
            *["--save-pairs"] * (not script.endswith("offline")),
        ]
        command += ["--offline-share", READ / BATCH] * script.endswith("hybrid") + ["--out"]
        with torch.enable_grad():
            return made_once(
                tmp_path_factory, f"adds_up_{script}", lambda folder: call(*command, folder)
            )

    return run


def load(folder, kind=AutoModelForCausalLM):
    return kind.from_pretrained(folder).double().eval()


def logprobs(model, x: list[int], y: list[int]) -> torch.Tensor:
    """(T, V) log-probabilities of all tokens in each place of the response."""
    return model(torch.tensor([x + y])).logits[0, len(x) - 1 : -1].log_softmax(-1)


def logprob(model, x: list[int], y: list[int]) -> torch.Tensor:
    return logprobs(model, x, y)[range(len(y)), y].sum()


class Texts:
    """Ids of a setup's texts."""

    def __init__(self, setup):
        self.tokenizer = AutoTokenizer.from_pretrained(setup / "sft")

    def ids(self, prompt: str, response: str, finished: bool) -> tuple[list[int], list[int]]:
        x, both = (
            self.tokenizer(text, add_special_tokens=False).input_ids
            for text in (prompt, prompt + response)
        )
        return x, both[len(x) :] + [self.tokenizer.eos_token_id] * finished


def sampled_again(
    policy, written: list[dict], texts: Texts, seed: int, step: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of an evaluation's prompts and responses, which its texts would not give back: a special token is not in them."""
    prompts = [texts.ids(said["prompt"], "", False)[0] for said in written]
    told = 33, generator(seed, step, "evaluate"), texts.tokenizer, 256
    sampled = sample_in_parts(ipo_online.sample, policy, prompts, *told)
    assert decode(texts.tokenizer, prompts, sampled)[0] == [said["response"] for said in written]
    return prompts, sampled


def score(preference_model, x: list[int], y: list[int]) -> float:
    return preference_model.score(
        preference_model.model(torch.tensor([x + y])).last_hidden_state[0, -1]
    ).item()


def pairs_of(script: str, run: Path, setup: Path, texts: Texts) -> list[list[tuple]]:
    """(prompt, chosen, rejected, margin) of each step's pairs: those saved, or of D_golden in the run's order."""
    if (run / "online_pairs").exists():
        rows = read_jsonl(run / "online_pairs" / "train.jsonl")
        rows = [
            (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], row["margin"])
            for row in rows
        ]
    else:
        data = golden_pairs(setup, texts)
        rows = [data[i] for i in batch_order(len(data), BATCH, STEPS, SEED).flatten().tolist()]
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


def golden_pairs(setup: Path, texts: Texts) -> list[tuple]:
    pairs = []
    for row in read_jsonl(setup / "d_golden" / "train.jsonl"):
        x, chosen = texts.ids(row["prompt"], row["chosen"], row["chosen_finished"])
        pairs.append(
            (
                x,
                chosen,
                texts.ids(row["prompt"], row["rejected"], row["rejected_finished"])[1],
                row["margin"],
            )
        )
    return pairs


@torch.no_grad()
@pytest.mark.parametrize("script", [name for name in SCRIPTS if not name.endswith("offline")])
def test_the_proxy_has_labelled_what_was_sampled(script, setup, finished):
    """The chosen response is the one that the proxy, not golden, scores higher, by the margin that is kept."""
    texts = Texts(setup)
    proxy, data = (
        load(setup / "proxy", AutoModelForSequenceClassification),
        golden_pairs(setup, texts),
    )
    steps = pairs_of(script, finished(script), setup, texts)
    for pairs, indices in zip(
        steps, batch_order(len(data), BATCH, STEPS, SEED).tolist(), strict=True
    ):
        assert [x for x, *_ in pairs] == [data[i][0] for i in indices]
        read = READ if script == "ipo_hybrid" else 0
        assert pairs[:read] == [data[i] for i in indices[:read]]
        for x, chosen, rejected, margin in pairs[read:]:
            assert (
                score(proxy, x, chosen) - score(proxy, x, rejected)
                == pytest.approx(margin, abs=1e-4)
                and margin >= 0
            )
            assert (chosen == rejected) == (margin == 0)


@torch.no_grad()
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_evaluation_says_what_its_responses_are(script, setup, finished):
    texts, run, sft = Texts(setup), finished(script), load(setup / "sft")
    preference_models = {"win_rate": load(setup / "golden", AutoModelForSequenceClassification)}
    if not script.endswith("offline"):
        preference_models["proxy_win_rate"] = load(
            setup / "proxy", AutoModelForSequenceClassification
        )
    baselines = read_jsonl(setup / "baseline" / "responses.jsonl")
    baselines = {
        split: [row for row in baselines if row["split"] == split][:PROMPTS]
        for split in ("train", "test")
    }
    data = random.Random(0).sample(golden_pairs(setup, texts), PROMPTS)
    for row in read_jsonl(run / "evals.jsonl")[1:]:
        policy = load(run / "policies" / str(row["step"]))
        written = read_jsonl(run / "responses" / f"{row['step']}.jsonl")
        prompts, sampled = sampled_again(policy.float(), written, texts, SEED, row["step"])
        ended = [y[-1] == texts.tokenizer.eos_token_id for y in sampled]
        assert ended == [said["finished"] for said in written] and row[
            "finished"
        ] == statistics.mean(ended)
        assert row["response_length"] == statistics.mean(map(len, sampled))
        policy.double()
        kls = []
        for x, y in list(zip(prompts, sampled))[:5]:
            p, q = (logprobs(m, x, y) for m in (policy, sft))
            kls.append((p.exp() * (p - q)).sum().item())
        assert row["kl"] == pytest.approx(statistics.mean(kls), rel=1e-3)
        assert row["kl_stderr"] == pytest.approx(statistics.stdev(kls) / len(kls) ** 0.5, rel=1e-3)
        for name, preference_model in preference_models.items():
            for key, split in ((name, "train"), (f"{name}_heldout", "test")):
                said = [
                    each | {"ids": y} for each, y in zip(written, sampled) if each["split"] == split
                ]
                assert [each["prompt"] for each in said] == [
                    each["prompt"] for each in baselines[split]
                ]
                margins = []
                for own, other in zip(said, baselines[split]):
                    x, y = texts.ids(other["prompt"], other["response"], other["finished"])
                    margins.append(
                        score(preference_model, x, own["ids"]) - score(preference_model, x, y)
                    )
                assert [each[f"{name}_margin"] for each in said] == pytest.approx(margins, abs=1e-4)
                won = [(m > 0) + 0.5 * (m == 0) for m in margins]
                assert row[key] == statistics.mean(won)
                assert row[f"{key}_stderr"] == pytest.approx(
                    statistics.stdev(won) / len(won) ** 0.5
                )
        ratios = [
            [(logprob(policy, x, y) - logprob(sft, x, y)).item() for y in both]
            for x, *both, _ in data
        ]
        assert row["chosen_logratio"] == pytest.approx(
            statistics.mean(c for c, _ in ratios), abs=1e-3
        )
        assert row["rejected_logratio"] == pytest.approx(
            statistics.mean(r for _, r in ratios), abs=1e-3
        )
        assert row["accuracy"] == statistics.mean(c > r for c, r in ratios)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_step_is_one_of_adamw_down_the_loss_of_its_pairs(script, setup, finished):
    """And its line of metrics is what the policy before it makes of its pairs."""
    texts, run, sft, loss_of = (
        Texts(setup),
        finished(script),
        load(setup / "sft"),
        LOSS[script.partition("_")[0]],
    )
    policy = load(run / "policies" / "0")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), sft.parameters()))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)
    for step, (pairs, row) in enumerate(
        zip(pairs_of(script, run, setup, texts), read_jsonl(run / "metrics.jsonl"))
    ):
        before, losses, logps, ratios = copy.deepcopy(policy), [], [], []
        for x, *both, _ in pairs:
            chosen, rejected = (logprob(policy, x, y) for y in both)
            with torch.no_grad():
                fixed = [logprob(sft, x, y) for y in both]
            losses.append(loss_of((chosen - fixed[0]) - (rejected - fixed[1]), chosen))
            logps.append((chosen.item(), rejected.item()))
            ratios.append((chosen.item() - fixed[0].item(), rejected.item() - fixed[1].item()))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        rewards = [BETA * statistics.mean(values) for values in zip(*ratios)]
        expected = {
            "step": step,
            "loss": loss.item(),
            "grad_norm": norm.item(),
            "learning_rate": RATE,
        }
        expected |= dict(zip(("logps/chosen", "logps/rejected"), map(statistics.mean, zip(*logps))))
        expected |= {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": rewards[0] - rewards[1],
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert row["ties"] == sum(margin == 0 for *_, margin in pairs) / BATCH
        if step:
            assert row["rewards/accuracies"] == statistics.mean(
                (c > r) + 0.5 * (c == r) for c, r in ratios
            )
        after = load(run / "policies" / str(step + 1))
        moved, apart = (
            sum((a - b).norm() ** 2 for a, b in zip(m.parameters(), after.parameters()))
            for m in (before, policy)
        )
        assert (
            apart < 0.01 * moved
        )  # rounding decides the signs of a few gradients that are almost 0
        policy.load_state_dict(after.state_dict())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_gradient_that_is_clipped_to_nothing_moves_nothing(script, setup, tmp_path):
    """So nothing else does: no weight decay."""
    settings = [
        "--steps",
        2,
        "--batch-size",
        4,
        "--eval-every",
        2,
        "--eval-prompts",
        4,
        "--kl-prompts",
        4,
    ]
    call(
        f"{script}.py",
        "--setup",
        setup,
        *settings,
        "--max-grad-norm",
        1e-20,
        "--out",
        tmp_path / "run",
    )
    sft, policy = load(setup / "sft"), load(tmp_path / "run" / "policy")
    assert all(torch.equal(a, b) for a, b in zip(sft.parameters(), policy.parameters()))


def test_another_seed_samples_other_texts(setup, tmp_path):
    """To the same prompts, in training and in evaluations."""
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({"prompt": read_jsonl(setup / "d_golden" / "train.jsonl")[0]["prompt"]})
    )
    for seed in (1, 2):
        settings = [
            "--steps",
            1,
            "--batch-size",
            1,
            "--eval-prompts",
            4,
            "--kl-prompts",
            4,
            "--save-pairs",
            "--seed",
            seed,
        ]
        call(
            "ipo_online.py",
            "--setup",
            setup,
            "--dataset",
            tmp_path / "prompts.jsonl",
            *settings,
            "--out",
            tmp_path / str(seed),
        )
    for name in ("online_pairs/train.jsonl", "responses/0.jsonl"):
        assert (tmp_path / "1" / name).read_text() != (tmp_path / "2" / name).read_text()


def test_fine_tuning_learns_both_responses(tmp_path):
    """Every pair has the same two, and half of the probability is each one's in the end."""
    tokenizer, model = letter_tokenizer(), tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join([json.dumps({"prompt": "ab", "chosen": "cd", "rejected": "efg"})] * 8)
    )
    command = [
        "-m",
        "prepare.sft",
        "--model",
        tmp_path / "model",
        "--dataset",
        tmp_path / "pairs.jsonl",
        "--steps",
        150,
    ]
    call(*command, "--batch-size", 4, "--out", tmp_path / "sft")
    model, (x, chosen, rejected) = (
        load(tmp_path / "sft"),
        (tokenizer(text).input_ids for text in ("ab", "cd", "efg")),
    )
    with torch.no_grad():
        each = [
            logprob(model, x, y + [tokenizer.eos_token_id]).exp().item() for y in (chosen, rejected)
        ]
    assert each == pytest.approx([0.5, 0.5], abs=0.1)


@torch.no_grad()
def test_bf16_trains_and_samples_and_never_judges_or_measures(setup, tmp_path):
    """Labels and margins are those of fp32, to more digits than bf16 has; the step is not."""
    texts, settings = (
        Texts(setup),
        ["--steps", 1, "--batch-size", 8, "--eval-prompts", 8, "--kl-prompts", 8],
    )
    for name, precision in (("whole", "fp32"), ("half", "bf16")):
        command = ["--setup", setup, *settings, "--precision", precision, "--save-policies"]
        with torch.enable_grad():
            call("ipo_online.py", *command, "--save-pairs", "--out", tmp_path / f"online_{name}")
            call("ipo_offline.py", *command, "--out", tmp_path / f"offline_{name}")
    proxy, golden = (
        load(setup / role, AutoModelForSequenceClassification) for role in ("proxy", "golden")
    )
    for row in read_jsonl(tmp_path / "online_half" / "online_pairs" / "train.jsonl"):
        scores = [
            score(proxy, row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids")
        ]
        assert scores[0] - scores[1] == pytest.approx(row["margin"], abs=1e-4)
    first, other = (
        read_jsonl(tmp_path / f"offline_{name}" / "evals.jsonl")[0] for name in ("whole", "half")
    )
    assert first == other  # before the first step
    moved = [
        load(tmp_path / f"offline_{name}" / "policy").parameters() for name in ("whole", "half")
    ]
    apart = [(a - b).abs().max().item() for a, b in zip(*moved)]
    assert max(apart) > 1e-6  # rounded gradients
    baselines = {row["prompt"]: row for row in read_jsonl(setup / "baseline" / "responses.jsonl")}
    written = read_jsonl(tmp_path / "offline_half" / "responses" / "1.jsonl")
    policy = AutoModelForCausalLM.from_pretrained(
        tmp_path / "offline_half" / "policies" / "1"
    ).eval()
    for said, x, y in zip(written, *sampled_again(policy, written, texts, 1, 1)):
        other = baselines[said["prompt"]]
        other = texts.ids(other["prompt"], other["response"], other["finished"])
        assert score(golden, x, y) - score(golden, *other) == pytest.approx(
            said["win_rate_margin"], abs=1e-4
        )
