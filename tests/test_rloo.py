"""RLOO's loss is a policy gradient: of the expected reward minus beta times the KL, and exactly."""

import pytest
import torch

from common import collate
from rloo_online import preference_loss, sequence_logprob
from tests.conftest import tiny_model
from tests.test_logprobs import every_response

BETA, SCALE, VOCABULARY = 0.7, 2.0, 4


def logprobs(model) -> torch.Tensor:
    """(N,) log-probabilities of all responses of at most three tokens."""
    responses = [*every_response(VOCABULARY, 3)]
    return sequence_logprob(model, *collate([[2, 3]] * len(responses), responses, "cpu"))


def gradient(value: torch.Tensor, model) -> torch.Tensor:
    gradients = torch.autograd.grad(value, [*model.parameters()], retain_graph=True)
    return torch.cat([part.flatten() for part in gradients])


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_the_gradient_is_that_of_expected_reward_minus_beta_kl(form):
    """Summed over all pairs of responses. A pairwise proxy's margins are no differences of scores:
    then the reward is the preference over the policy's own responses, which stay as they are."""
    policy, reference = (tiny_model("gpt2", seed, vocab_size=VOCABULARY) for seed in (1, 2))
    logp, logq = logprobs(policy), logprobs(reference).detach()
    p, count = logp.exp(), len(logp)
    assert p.sum().item() == pytest.approx(1)
    noise = torch.randn(count, count, dtype=torch.float64, generator=torch.manual_seed(0))
    margins = noise[0][:, None] - noise[0] if form == "pointwise" else noise - noise.T
    reward = noise[0] if form == "pointwise" else margins @ p.detach()
    exact = SCALE * p @ reward - BETA * p @ (logp - logq)

    first, second = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    better = margins[first, second] >= 0
    chosen, rejected = torch.where(better, first, second), torch.where(better, second, first)
    sizes, weights = margins[chosen, rejected], (p[first] * p[second]).detach()
    pairs = logp[chosen], logp[rejected], logq[chosen], logq[rejected]
    loss = (weights * preference_loss(*pairs, sizes, BETA, SCALE)).sum()
    exact, ours = gradient(exact, policy), gradient(loss, policy)
    assert (ours + exact).abs().max() < 1e-10 < 1e-2 < exact.abs().max()


def test_by_hand():
    """h = 3, so R_w - R_l = 2 * 4 - 0.5 * 3; log pi(y_w) - log pi(y_l) = 2. The order of the two
    responses does not count."""
    chosen, rejected, *fixed = torch.tensor([[-5.0], [-7.0], [-6.0], [-5.0]]).requires_grad_()
    loss = preference_loss(chosen, rejected, *fixed, torch.tensor([4.0]), 0.5, 2.0)
    slopes = [g.item() for g in torch.autograd.grad(loss, (chosen, rejected))]
    assert loss.item() == -6.5 and slopes == [-3.25, 3.25]
    swapped = preference_loss(rejected, chosen, *fixed[::-1], torch.tensor([-4.0]), 0.5, 2.0)
    assert swapped.item() == loss.item()
