"""The loss and its gradient against values worked out by hand."""

import pytest
import torch

import ipo_offline
import ipo_online
from common import collate
from tests.conftest import letter_tokenizer, tiny_model


@pytest.mark.parametrize("script", [ipo_offline, ipo_online])
@pytest.mark.parametrize(
    "beta, h, loss, slope",
    [
        (0.1, 0.0, 25.0, -10.0),  # 1 / (4 beta^2), and 2h - 1/beta
        (0.1, 5.0, 0.0, 0.0),  # the minimum, at 1 / (2 beta)
        (0.1, 7.0, 4.0, 4.0),  # beyond it the loss rises again
        (0.5, 0.25, 0.5625, -1.5),
        (1.0, -1.0, 2.25, -3.0),
    ],
)
def test_ipo_by_hand(script, beta, h, loss, slope):
    # log-ratios: chosen h + 1, rejected 1; so that only their difference can matter
    chosen = torch.tensor([h + 1 - 12.0, -3.0 + h], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0 - 8.0, -4.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-12.0, -3.0], dtype=torch.float64), torch.tensor([-8.0, -4.0], dtype=torch.float64)
    losses = script.preference_loss(chosen, rejected, *reference, beta)
    assert losses.tolist() == pytest.approx([loss, loss])
    losses.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([slope, slope])
    assert rejected.grad.tolist() == pytest.approx([-slope, -slope])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_step_has_h_exactly_zero(family, dtype):
    """Before any update policy and reference are the same numbers, to the bit, although only one keeps gradients."""
    tokenizer = letter_tokenizer()
    policy, reference = tiny_model(family, dtype=dtype), tiny_model(family, dtype=dtype).requires_grad_(False)
    batch = collate([[2, 3], [4]] * 2, [[5, 1], [6, 7, 8], [9], [2, 2, 2, 1]], tokenizer, "cpu")
    chosen, rejected = ipo_online.sequence_logprob(policy, batch).chunk(2)
    with torch.no_grad():
        reference_chosen, reference_rejected = ipo_online.sequence_logprob(reference, batch).chunk(2)
    assert chosen.requires_grad and torch.equal(chosen, reference_chosen) and torch.equal(rejected, reference_rejected)
    losses = ipo_online.preference_loss(chosen, rejected, reference_chosen, reference_rejected, 0.1)
    assert losses.tolist() == [25.0, 25.0]


def test_no_gradient_for_a_pair_of_identical_responses():
    tokenizer, policy, reference = letter_tokenizer(), tiny_model(seed=1), tiny_model(seed=2)
    batch = collate([[2, 3]] * 2, [[5, 6, 1]] * 2, tokenizer, "cpu")
    chosen, rejected = ipo_online.sequence_logprob(policy, batch).chunk(2)
    fixed = ipo_online.sequence_logprob(reference, batch).detach().chunk(2)
    ipo_online.preference_loss(chosen, rejected, *fixed, 0.1).sum().backward()
    assert max(p.grad.abs().max() for p in policy.parameters() if p.grad is not None) < 1e-12
