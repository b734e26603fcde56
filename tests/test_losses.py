"""The losses and their gradients against values worked out by hand, an independent formula, and TRL."""

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
FORMULAS = {  # in float64, of z = beta h: Tang et al. 2024, Appendix B, times 1 / beta^2 for IPO; 2402.05749 for SLiC
    "ipo": lambda z, beta: (z - 0.5) ** 2 / beta**2,
    "dpo": lambda z, beta: np.logaddexp(0.0, -z),
    "slic": lambda z, beta: np.maximum(0.0, 1.0 - z),
}
AT_THE_START = {
    "ipo": 25.0,
    "dpo": math.log(2),
    "slic": 1.0,
}  # h = 0, beta = 0.1: 1 / (4 beta^2), log 2, 1


def preference_loss(script):
    return importlib.import_module(script).preference_loss


CONTRASTIVE = [script for script in SCRIPTS if not script.startswith("bo2")]


@pytest.mark.parametrize("script", CONTRASTIVE)
def test_by_hand(script):
    for beta, h, loss, slope in BY_HAND[script.split("_")[0]]:
        # log-ratios: chosen h + 1, rejected 1; so that only their difference can matter
        chosen = torch.tensor([h + 1 - 12.0, -3.0 + h], dtype=torch.float64, requires_grad=True)
        rejected = torch.tensor([1.0 - 8.0, -4.0], dtype=torch.float64, requires_grad=True)
        reference = (
            torch.tensor([-12.0, -3.0], dtype=torch.float64),
            torch.tensor([-8.0, -4.0], dtype=torch.float64),
        )
        losses = preference_loss(script)(chosen, rejected, *reference, beta)
        assert losses.tolist() == pytest.approx([loss, loss], abs=1e-9)
        losses.sum().backward()
        assert chosen.grad.tolist() == pytest.approx([slope, slope], abs=1e-9)
        assert rejected.grad.tolist() == pytest.approx([-slope, -slope], abs=1e-9)


@pytest.mark.parametrize("script", ["bo2_offline", "bo2_online"])
def test_best_of_2_sees_the_chosen_response_alone(script):
    """-log pi(chosen): the rejected response and the reference teach nothing, beta changes nothing."""
    chosen, rejected = (
        torch.tensor([-12.0, -3.5], dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    reference = torch.tensor([-9.0, -4.0], dtype=torch.float64)
    for beta in (0.1, 2.0):
        losses = preference_loss(script)(chosen, rejected, reference, -reference, beta)
        assert losses.tolist() == [12.0, 3.5]
    losses.sum().backward()
    assert chosen.grad.tolist() == [-1.0, -1.0] and rejected.grad is None


@pytest.mark.parametrize("script", CONTRASTIVE)
@given(st.lists(st.tuples(*[st.floats(-200, 0)] * 4), min_size=1, max_size=5), st.floats(0.01, 2))
@settings(max_examples=50, deadline=None)
def test_against_an_independent_formula(script, rows, beta):
    columns = np.array(rows).T
    z = beta * ((columns[0] - columns[2]) - (columns[1] - columns[3]))
    losses = preference_loss(script)(*torch.tensor(columns), beta)
    assert losses.shape == (len(rows),)
    assert np.allclose(
        losses.numpy(), FORMULAS[script.split("_")[0]](z, beta), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_step_has_h_exactly_zero(script, family, dtype):
    """Before any update policy and reference are the same numbers, to the bit, although only one keeps gradients."""
    tokenizer, sequence_logprob = (
        letter_tokenizer(),
        importlib.import_module(script).sequence_logprob,
    )
    policy, reference = (
        tiny_model(family, dtype=dtype),
        tiny_model(family, dtype=dtype).requires_grad_(False),
    )
    batch = collate([[2, 3], [4]] * 2, [[5, 1], [6, 7, 8], [9], [2, 2, 2, 1]], tokenizer, "cpu")
    chosen, rejected = sequence_logprob(policy, batch).chunk(2)
    with torch.no_grad():
        reference_chosen, reference_rejected = sequence_logprob(reference, batch).chunk(2)
    assert (
        chosen.requires_grad
        and torch.equal(chosen, reference_chosen)
        and torch.equal(rejected, reference_rejected)
    )
    losses = preference_loss(script)(chosen, rejected, reference_chosen, reference_rejected, 0.1)
    exact = torch.tensor(AT_THE_START.get(script.split("_")[0], 0.0), dtype=dtype).item()
    assert losses.tolist() == ([exact, exact] if script in CONTRASTIVE else (-chosen).tolist())


@pytest.mark.parametrize("script", CONTRASTIVE)
def test_no_gradient_for_a_pair_of_identical_responses(script):
    tokenizer, policy, reference = letter_tokenizer(), tiny_model(seed=1), tiny_model(seed=2)
    batch = collate([[2, 3]] * 2, [[5, 6, 1]] * 2, tokenizer, "cpu")
    chosen, rejected = ipo_online.sequence_logprob(policy, batch).chunk(2)
    fixed = ipo_online.sequence_logprob(reference, batch).detach().chunk(2)
    preference_loss(script)(chosen, rejected, *fixed, 0.1).sum().backward()
    assert max(p.grad.abs().max() for p in policy.parameters() if p.grad is not None) < 1e-12


TRL_NAMES = {"ipo": "ipo", "dpo": "sigmoid", "slic": "hinge"}


@pytest.mark.parametrize(
    "script", [script for script in SCRIPTS if script.split("_")[0] in TRL_NAMES]
)
def test_loss_and_gradient_are_those_of_trl(script, tmp_path):
    """TRL's own DPOTrainer on the same model and pairs. Its offline IPO divides each log-ratio by the response's length."""
    trl = pytest.importorskip("trl")
    import datasets

    loss, beta, tokenizer = script.split("_")[0], 0.3, letter_tokenizer()
    policy, reference = (
        tiny_model(seed=1, dtype=torch.float32),
        tiny_model(seed=2, dtype=torch.float32),
    )
    prompts = [[2, 3], [4], [5, 6, 7]]
    chosen, rejected = [[5, 1], [6, 7, 8, 1], [9, 1]], [[9, 1], [2, 2, 2, 3, 1], [3, 4, 1]]
    rows = {"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected}
    config = trl.DPOConfig(
        str(tmp_path),
        beta=beta,
        loss_type=TRL_NAMES[loss],
        use_cpu=True,
        report_to="none",
        bf16=False,
    )
    text = datasets.Dataset.from_dict({"prompt": ["ab"], "chosen": ["c"], "rejected": ["d"]})
    theirs = trl.DPOTrainer(
        policy, reference, config, train_dataset=text, processing_class=tokenizer
    )
    batch = theirs.data_collator([dict(zip(rows, row)) for row in zip(*rows.values())])
    policy.eval()
    policy.zero_grad()
    value = theirs.compute_loss(theirs.model, batch)
    value.backward()
    gradient = [p.grad.clone() for p in policy.parameters()]

    policy.zero_grad()
    both = collate(prompts * 2, chosen + rejected, tokenizer, "cpu")
    lengths = both.mask.sum(1) if loss == "ipo" else torch.ones(6)
    policy_logps = (ipo_online.sequence_logprob(policy, both) / lengths).chunk(2)
    reference_logps = (ipo_online.sequence_logprob(reference, both).detach() / lengths).chunk(2)
    mine = preference_loss(script)(*policy_logps, *reference_logps, beta).mean()
    mine.backward()
    assert mine.item() == pytest.approx(value.item(), rel=1e-5)
    for ours, other in zip([p.grad for p in policy.parameters()], gradient):
        assert torch.allclose(ours, other, rtol=1e-3, atol=1e-5 * other.abs().max().item() + 1e-7)
