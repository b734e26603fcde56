"""A short run of each script, done over from the files that it leaves, by code of its own: one
text at a time, without batches, padding or caches. Who samples, who labels, whose KL, which
gradient, which step: all of it must add up."""

import json
import math
import random
import statistics

import pytest
import torch
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from common import batch_order, decode, generator, load_tokenizer
from prepare.sft import train_sft
from tests import conftest
from tests.conftest import SCRIPTS, call, made_once, read_jsonl, stage, write_jsonl

STEPS, BATCH, RATE, BETA, CLIP, PROMPTS, SEED = 3, 4, 1e-3, 0.4, 1.0, 8, 5
READ, SCALE = 1, 2.0  # rows of the hybrid's batch; of RLOO's reward
SETTINGS = ["--steps", STEPS, "--batch-size", BATCH, "--learning-rate", RATE, "--beta", BETA]
SETTINGS += ["--seed", SEED, "--eval-prompts", PROMPTS, "--eval-every", 1]
SETTINGS += ["--micro-batch-size", 3, "--eval-batch-size", 3]  # no number depends on these
KL_PROMPTS = {"ipo_offline": 5, "dpo_online": 100}  # never more than there are training prompts
CLIPPED = "slic_offline", "bo2_online"  # the others: as by default, not
ONLINE = [script for script in SCRIPTS if not script.endswith("offline")]
LOSS = {
    "ipo": lambda h, *_: (h - 1 / (2 * BETA)) ** 2,
    "dpo": lambda h, *_: softplus(-BETA * h),
    "slic": lambda h, *_: torch.relu(1 - BETA * h),
    "bo2": lambda h, chosen, *_: -chosen,
    "rloo": lambda h, chosen, rejected, margin: (
        (BETA * h.detach() - SCALE * margin) * (chosen - rejected) / 2
    ),
}


@pytest.fixture(scope="module")
def baseline(setup, tmp_path_factory):
    """The stored responses in another order, the held-out ones first."""
    rows = read_jsonl(setup / "baseline" / "responses.jsonl")[::-1]
    return write_jsonl(tmp_path_factory.mktemp("baseline") / "responses.jsonl", rows).parent


@pytest.fixture(scope="module")
def finished(setup, baseline, tmp_path_factory):
    """script -> its run, made when it is first asked for."""

    def run(script):
        command = [f"{script}.py", "--setup", setup, "--baseline", baseline, *SETTINGS]
        command += ["--save-policies", "--kl-prompts", KL_PROMPTS.get(script, PROMPTS)]
        command += ["--save-pairs"] * (script in ONLINE)
        command += ["--max-grad-norm", CLIP] * (script in CLIPPED)
        command += ["--scale", SCALE] * script.startswith("rloo")
        command += ["--offline-share", READ / BATCH] * script.endswith("hybrid") + ["--out"]
        make = torch.enable_grad()(lambda folder: call(*command, folder))
        return made_once(tmp_path_factory, f"adds_up_{script}", make)

    return run


def load(folder):
    """A policy, or a preference model, in float64."""
    kinds = {name: AutoModelForSequenceClassification for name in ("proxy", "golden")}
    return kinds.get(folder.name, AutoModelForCausalLM).from_pretrained(folder).double().eval()


def logprobs(model, x: list[int], y: list[int]) -> torch.Tensor:
    """(T, V) log-probabilities of all tokens in each place of the response."""
    return model(torch.tensor([x + y])).logits[0, len(x) - 1 : -1].log_softmax(-1)


def logprob(model, x: list[int], y: list[int]) -> torch.Tensor:
    return logprobs(model, x, y)[range(len(y)), y].sum()


def score(model, x: list[int], y: list[int]) -> float:
    return model.score(model.model(torch.tensor([x + y])).last_hidden_state[0, -1]).item()


def sampled(policy, x: list[int], uniforms: torch.Tensor) -> list[int]:
    """A response, token by token: the first whose cumulative probability exceeds the number."""
    y = []
    while len(y) < len(uniforms) and y[-1:] != [policy.config.eos_token_id]:
        cdf = policy(torch.tensor([x + y])).logits[0, -1].softmax(0).cumsum(0)
        y.append(int((cdf <= uniforms[len(y)] * cdf[-1]).sum()))
    return y


def vector(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def clipped(gradient: torch.Tensor, norm: float) -> torch.Tensor:
    return gradient * min(1.0, norm / gradient.norm().item())


def adamw(gradients: list[torch.Tensor], rate: float) -> torch.Tensor:
    """The update that follows the last of these gradients, without weight decay."""
    first = second = torch.zeros_like(gradients[0])
    for gradient in gradients:
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
    steps = len(gradients)
    return -rate * first / (1 - 0.9**steps) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)


class Texts:
    """Ids of a setup's texts."""

    def __init__(self, setup, baseline):
        self.tokenizer = load_tokenizer(str(setup / "sft"))
        self.baseline = read_jsonl(baseline / "responses.jsonl")
        self.d_golden = []
        for row in read_jsonl(setup / "d_golden" / "train.jsonl"):
            x, y = self.ids(row["prompt"], row["chosen"], row["chosen_finished"])
            z = self.ids(row["prompt"], row["rejected"], row["rejected_finished"])[1]
            self.d_golden.append((x, y, z, row["margin"]))

    def ids(self, prompt: str, response: str = "", finished: bool = False):
        x, both = self.tokenizer([prompt, prompt + response], add_special_tokens=False).input_ids
        return x, both[len(x) :] + [self.tokenizer.eos_token_id] * finished

    def answers(self, policy, written: list[dict], seed: int, step: int) -> list[tuple]:
        """Ids of an evaluation's prompts and responses, sampled again: the text has no EOS."""
        uniforms = torch.rand(len(written), 33, generator=generator(seed, step, "evaluate"))
        prompts = [self.ids(said["prompt"])[0] for said in written]
        responses = [sampled(policy, x, row) for x, row in zip(prompts, uniforms)]
        said = [row["response"] for row in written], [row["finished"] for row in written]
        assert decode(self.tokenizer, prompts, responses) == said
        return list(zip(prompts, responses))

    def pairs(self, run) -> list[list[tuple]]:
        """(prompt, chosen, rejected, margin) of each step's pairs: saved, or in the run's order."""
        if not (run / "online_pairs").exists():
            order = batch_order(len(self.d_golden), BATCH, STEPS, SEED)
            return [[self.d_golden[i] for i in rows] for rows in order]
        names, rows = ("prompt", "chosen", "rejected"), read_jsonl(run / "online_pairs/train.jsonl")
        assert [row["step"] for row in rows] == [i // BATCH for i in range(len(rows))]
        rows = [(*(row[f"{name}_ids"] for name in names), row["margin"]) for row in rows]
        return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


@pytest.fixture(scope="module")
def texts(setup, baseline):
    return Texts(setup, baseline)


@torch.no_grad()
@pytest.mark.parametrize("script", ONLINE)
def test_the_policy_samples_and_the_proxy_labels(script, setup, finished, texts):
    """Both responses are those of the policy as it is in that step; chosen is the one that the
    proxy scores higher, by the margin that is kept."""
    proxy, run, read = load(setup / "proxy"), finished(script), READ * (script == "ipo_hybrid")
    order = batch_order(len(texts.d_golden), BATCH, STEPS, SEED)
    for step, (pairs, rows) in enumerate(zip(texts.pairs(run), order, strict=True)):
        policy = load(run / "policies" / str(step))
        uniforms = torch.rand(2, BATCH, 33, generator=generator(SEED, step, "sample"))
        assert pairs[:read] == [texts.d_golden[i] for i in rows[:read]]
        assert [x for x, *_ in pairs] == [texts.d_golden[i][0] for i in rows]
        for i, (x, chosen, rejected, margin) in list(enumerate(pairs))[read:]:
            both = [sampled(policy, x, uniforms[k, i]) for k in (0, 1)]
            assert both in ([chosen, rejected], [rejected, chosen])
            gap = score(proxy, x, chosen) - score(proxy, x, rejected)
            assert gap == pytest.approx(margin, abs=1e-4) and margin >= 0
            assert (chosen == rejected) == (margin == 0)


@torch.no_grad()
@pytest.mark.parametrize("script", ["ipo_offline", "dpo_online", "ipo_hybrid"])  # one a side
def test_an_evaluation_says_what_its_responses_are(script, setup, finished, texts):
    run, sft, mean = finished(script), load(setup / "sft"), statistics.mean
    models = {"win_rate": load(setup / "golden"), "proxy_win_rate": load(setup / "proxy")}
    data = random.Random(0).sample(texts.d_golden, PROMPTS)

    def stderr(values):
        return statistics.stdev(values) / len(values) ** 0.5

    for row in read_jsonl(run / "evals.jsonl")[1:]:
        policy = load(run / "policies" / str(row["step"]))
        written = read_jsonl(run / "responses" / f"{row['step']}.jsonl")
        answers = texts.answers(policy, written, SEED, row["step"])
        assert row["finished"] == mean(said["finished"] for said in written)
        assert row["response_length"] == mean(len(y) for _, y in answers)
        kls = []
        for x, y in answers[: min(PROMPTS, KL_PROMPTS.get(script, PROMPTS))]:
            p, q = (logprobs(m, x, y) for m in (policy, sft))
            kls.append((p.exp() * (p - q)).sum().item())
        assert row["kl"] == pytest.approx(mean(kls), rel=1e-3)
        assert row["kl_stderr"] == pytest.approx(stderr(kls), rel=1e-3)
        for name, model in models.items():
            for key, split in ((name, "train"), (f"{name}_heldout", "test")):
                own = [(said, y) for said, y in zip(written, answers) if said["split"] == split]
                others = [other for other in texts.baseline if other["split"] == split]
                margins = []
                for (said, answer), other in zip(own, others[:PROMPTS], strict=True):
                    assert said["prompt"] == other["prompt"]
                    other = texts.ids(other["prompt"], other["response"], other["finished"])
                    margins.append(score(model, *answer) - score(model, *other))
                    assert said[f"{name}_margin"] == pytest.approx(margins[-1], abs=1e-4)
                won = [(m > 0) + 0.5 * (m == 0) for m in margins]
                assert row[key] == mean(won)
                assert row[f"{key}_stderr"] == pytest.approx(stderr(won))
        ratios = [
            [(logprob(policy, x, y) - logprob(sft, x, y)).item() for y in both]
            for x, *both, _ in data
        ]
        for name, values in zip(("chosen", "rejected"), zip(*ratios)):
            assert row[f"{name}_logratio"] == pytest.approx(mean(values), abs=1e-3)
        assert row["accuracy"] == mean(c > r for c, r in ratios)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_step_is_one_of_adamw_down_the_loss_of_its_pairs(script, setup, finished, texts):
    """Of the whole gradient, unless it is to be clipped. And the step's line of metrics is what
    the policy before it makes of its pairs."""
    run, sft, loss_of = finished(script), load(setup / "sft"), LOSS[script.partition("_")[0]]
    policy, gradients, mean = load(run / "policies" / "0"), [], statistics.mean
    assert torch.equal(vector(policy.parameters()), vector(sft.parameters()))
    lines = read_jsonl(run / "metrics.jsonl")
    for step, (pairs, row) in enumerate(zip(texts.pairs(run), lines, strict=True)):
        losses, logps, ratios = [], [], []
        for x, *both, margin in pairs:
            logps.append(torch.stack([logprob(policy, x, y) for y in both]))
            with torch.no_grad():
                fixed = torch.stack([logprob(sft, x, y) for y in both])
            ratios.append(logps[-1] - fixed)
            losses.append(loss_of(ratios[-1][0] - ratios[-1][1], *logps[-1], margin))
        loss = torch.stack(losses).mean()
        gradients.append(vector(torch.autograd.grad(loss, list(policy.parameters()))))
        logps, ratios = torch.stack(logps).detach(), torch.stack(ratios).detach()
        rewards = (BETA * ratios.mean(0)).tolist()
        expected = {"step": step, "loss": loss.item(), "grad_norm": gradients[-1].norm().item()}
        expected |= {"learning_rate": RATE, "rewards/margins": rewards[0] - rewards[1]}
        expected |= dict(zip(("rewards/chosen", "rewards/rejected"), rewards))
        expected |= dict(zip(("logps/chosen", "logps/rejected"), logps.mean(0).tolist()))
        expected |= {"ties": mean(margin == 0 for *_, margin in pairs)}
        accuracy = mean((c > r) + 0.5 * (c == r) for c, r in ratios.tolist())
        expected |= {"rewards/accuracies": accuracy if step else 0.5}  # all are 0 at first
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)

        before, policy = policy, load(run / "policies" / str(step + 1))
        moved = vector(policy.parameters()) - vector(before.parameters())
        shorter = [clipped(gradient, CLIP) for gradient in gradients]
        apart = [(moved - adamw(each, RATE)).norm() for each in (gradients, shorter)]
        near, far = reversed(apart) if script in CLIPPED else apart
        # far: clipped if it was not, or the reverse. Weight decay would be farther away than near
        assert near < 2e-4 * moved.norm() < far


def test_fine_tuning_is_adamw_down_the_loss_of_a_token(tmp_path):
    """Of every token of both responses in the batch alike, however they are split; with warm-up, a
    cosine, and gradients of norm 1 at most."""
    steps, rate, warm, tokenizer = 40, 3e-3, 2, conftest.letter_tokenizer()
    conftest.tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = [("ab", "c", "defghabc"), ("a", "bb", "c"), ("cd", "a" * 20, "b"), ("h", "gfed", "ce")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), row)) for row in data * 2]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    words = tmp_path / "model", pairs, tmp_path / "s"
    stage(train_sft, *words, sft_steps=steps, sft_learning_rate=rate, batch_size=4)

    def loss_of(model, rows):
        texts = [[tokenizer(text).input_ids for text in data[i % 4]] for i in rows]
        texts = [(x, y + [tokenizer.eos_token_id]) for x, *both in texts for y in both]
        return -sum(logprob(model, x, y) for x, y in texts) / sum(len(y) for _, y in texts)

    model, gradients = load(tmp_path / "model"), []
    before, weights = vector(model.parameters()), list(model.parameters())
    for step, rows in enumerate(batch_order(8, 4, steps, 1)):
        gradient = vector(torch.autograd.grad(loss_of(model, rows), weights))
        gradients.append(clipped(gradient, 1.0))
        share = (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        update = adamw(gradients, rate * (step / warm if step < warm else share))
        torch.nn.utils.vector_to_parameters(vector(weights) + update, weights)
    sft = load(tmp_path / "s")
    apart = vector(sft.parameters()) - vector(weights)
    assert apart.norm() < 1e-4 * (vector(weights) - before).norm()
    told = json.loads((tmp_path / "s" / "nats_per_token.json").read_text())
    assert told["train"] == pytest.approx(loss_of(sft, range(8)).item(), rel=1e-5)


@torch.no_grad()
def test_bf16_trains_and_never_labels_or_measures(setup, texts, tmp_path):
    """Labels and margins are those of fp32, to more digits than bf16 has; the step is not."""
    for script in ("ipo_online", "ipo_offline"):
        command = [f"{script}.py", "--setup", setup, *SETTINGS, "--steps", 1, "--save-policies"]
        command += ["--save-pairs"] * (script in ONLINE)
        for precision in ("no", "bf16"):
            words = ["--mixed-precision", precision, "--out", tmp_path / f"{script} {precision}"]
            torch.enable_grad()(call)(*command, *words)
    proxy = load(setup / "proxy")
    for x, chosen, rejected, margin in texts.pairs(tmp_path / "ipo_online bf16")[0]:
        gap = score(proxy, x, chosen) - score(proxy, x, rejected)
        assert gap == pytest.approx(margin, abs=1e-4)
    runs = [tmp_path / f"ipo_offline {precision}" for precision in ("no", "bf16")]
    said = [(run / "responses" / "0.jsonl").read_text() for run in runs]
    assert said[0] == said[1]  # before the first step, with golden's margins
    moved = [vector(load(run / "policy").parameters()) for run in runs]
    assert (moved[0] - moved[1]).abs().max() > 1e-6  # rounded gradients
