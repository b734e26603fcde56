"""The losses and their gradients against values worked out by hand and against TRL's."""

import importlib
import math

import pytest
import torch

import ipo_online
from common import collate
from tests.conftest import SCRIPTS, letter_tokenizer, tiny_model

BY_HAND = {  # beta, h, loss, slope in h
    "ipo": [
        (0.1, 0.0, 25.0, -10.0),  # 1 / (4 beta^2), and 2h - 1/beta
        (0.1, 5.0, 0.0, 0.0),  # the minimum, at 1 / (2 beta)
        (0.1, 7.0, 4.0, 4.0),  # beyond it the loss rises again
        (0.5, 0.25, 0.5625, -1.5),
        (1.0, -1.0, 2.25, -3.0),
    ],
    "dpo": [
        (0.1, 0.0, math.log(2), -0.05),  # -beta sigmoid(0)
        (0.5, 2.0, 0.3132616875, -0.1344707107),  # log(1 + 1/e), -0.5 / (1 + e)
        (1.0, -1.0, 1.3132616875, -0.7310585786),
        (1.0, 900.0, 0.0, 0.0),  # neither end overflows
        (1.0, -900.0, 900.0, -1.0),
    ],
    "slic": [
        (0.1, 0.0, 1.0, -0.1),
        (0.1, 12.0, 0.0, 0.0),  # beyond 1 / beta nothing is pushed
        (0.5, 1.0, 0.5, -0.5),
        (1.0, -2.0, 3.0, -1.0),
    ],
}
CONTRASTIVE = [script for script in SCRIPTS if script.split("_")[0] in BY_HAND]


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("script", CONTRASTIVE)
def test_by_hand(script):
    preference_loss = importlib.import_module(script).preference_loss
    for beta, h, loss, slope in BY_HAND[script.split("_")[0]]:
        # log-ratios: chosen h + 1, rejected 1; chosen h, rejected 0: their difference alone counts
        chosen, rejected = leaf(h + 1 - 12.0, h - 3.0), leaf(1 - 8.0, -4.0)
        losses = preference_loss(chosen, rejected, leaf(-12.0, -3.0), leaf(-8.0, -4.0), beta)
        assert losses.tolist() == pytest.approx([loss, loss], abs=1e-9)
        losses.sum().backward()
        assert chosen.grad.tolist() == pytest.approx([slope, slope], abs=1e-9)
        assert rejected.grad.tolist() == pytest.approx([-slope, -slope], abs=1e-9)


@pytest.mark.parametrize("script", ["bo2_offline", "bo2_online"])
def test_best_of_2_sees_the_chosen_response_alone(script):
    """-log pi(chosen): the rejected response and the reference teach nothing, beta nothing."""
    preference_loss = importlib.import_module(script).preference_loss
    chosen, rejected, reference = leaf(-12.0, -3.5), leaf(-5.0, -6.0), leaf(-9.0, -4.0)
    for beta in (0.1, 2.0):
        losses = preference_loss(chosen, rejected, reference, -reference, beta)
        assert losses.tolist() == [12.0, 3.5]
    losses.sum().backward()
    assert chosen.grad.tolist() == [-1.0, -1.0]
    assert rejected.grad is None and reference.grad is None


TRL_NAMES = {"ipo": "ipo", "dpo": "sigmoid", "slic": "hinge"}


@pytest.mark.parametrize("script", [x for x in CONTRASTIVE if x.split("_")[0] in TRL_NAMES])
def test_loss_and_gradient_are_those_of_trl(script, tmp_path):
    """DPOTrainer on the same pairs. Its IPO divides each log-ratio by the response's length."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    loss, beta, tokenizer = script.split("_")[0], 0.3, letter_tokenizer()
    policy, reference = (tiny_model(seed=seed, dtype=torch.float32) for seed in (1, 2))
    prompts = [[2, 3], [4], [5, 6, 7]]
    chosen, rejected = [[5, 1], [6, 7, 8, 1], [9, 1]], [[9, 1], [2, 2, 2, 3, 1], [3, 4, 1]]
    options = {"beta": beta, "loss_type": TRL_NAMES[loss], "use_cpu": True, "bf16": False}
    config = trl.DPOConfig(str(tmp_path), report_to="none", **options)
    text = datasets.Dataset.from_dict({"prompt": ["ab"], "chosen": ["c"], "rejected": ["d"]})
    more = {"train_dataset": text, "processing_class": tokenizer}
    theirs = trl.DPOTrainer(policy, reference, config, **more)
    names = "prompt_ids", "chosen_ids", "rejected_ids"
    rows = [dict(zip(names, row)) for row in zip(prompts, chosen, rejected)]
    policy.eval()
    policy.zero_grad()
    value = theirs.compute_loss(theirs.model, theirs.data_collator(rows))
    value.backward()
    gradient = [p.grad.clone() for p in policy.parameters()]

    policy.zero_grad()
    batch = collate(prompts * 2, chosen + rejected, "cpu")
    lengths = batch[1].sum(1) if loss == "ipo" else torch.ones(6)
    models = policy, reference.requires_grad_(False)
    logprobs = [(ipo_online.sequence_logprob(m, *batch) / lengths).chunk(2) for m in models]
    mine = importlib.import_module(script).preference_loss(*logprobs[0], *logprobs[1], beta).mean()
    mine.backward()
    assert mine.item() == pytest.approx(value.item(), rel=1e-5)
    for ours, other in zip([p.grad for p in policy.parameters()], gradient):
        assert torch.allclose(ours, other, rtol=1e-3, atol=1e-5 * other.abs().max().item() + 1e-7)
