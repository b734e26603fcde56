"""RLOO's loss is a policy gradient: of the expected reward minus beta times the KL, and exactly."""

import itertools

import pytest
import torch

import common
from common import collate
from rloo_online import preference_loss, sample, sequence_logprob
from tests.conftest import call, read_jsonl, tiny_model
from tests.test_resume import FEW, assert_equal_runs

BETA, SCALE, TOKENS, EOS, VOCABULARY = 0.7, 2.0, 3, 1, 4
PROMPT = [2, 3]


def responses() -> list[list[int]]:
    """All that can be sampled within TOKENS tokens."""
    others = [token for token in range(VOCABULARY) if token != EOS]
    ended = [[*y, EOS] for n in range(TOKENS) for y in itertools.product(others, repeat=n)]
    return ended + [list(y) for y in itertools.product(others, repeat=TOKENS)]


def logprobs(model) -> torch.Tensor:
    """(N,) log-probabilities of all responses."""
    ys = responses()
    return sequence_logprob(model, *collate([PROMPT] * len(ys), ys, "cpu"))


def gradient(value: torch.Tensor, model) -> torch.Tensor:
    gradients = torch.autograd.grad(value, [*model.parameters()], retain_graph=True)
    return torch.cat([part.flatten() for part in gradients])


def models():
    """A policy and another reference, in float64 throughout."""
    return (tiny_model("gpt2", seed, vocab_size=VOCABULARY) for seed in (1, 2))


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_the_gradient_is_that_of_expected_reward_minus_beta_kl(form):
    """Summed over all pairs of responses. A pairwise proxy's margins are no differences of scores:
    then the reward is the preference over the policy's own responses, which stay as they are."""
    policy, reference = models()
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
    # the slope of IPO's loss (h - target)^2 with target = scale * margin / beta, times beta / 4
    assert slopes[0] == 0.5 / 4 * 2 * (3 - 2.0 * 4 / 0.5)


def test_a_constant_reward_leads_back_to_the_reference():
    policy, reference = models()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)

    def kl() -> float:
        logp, logq = logprobs(policy).detach(), logprobs(reference).detach()
        return (logp.exp() @ (logp - logq)).item()

    before, prompts = kl(), [PROMPT] * 64
    for step in range(60):
        uniforms = torch.rand(128, TOKENS, generator=torch.manual_seed(step))
        batch = collate(prompts * 2, sample(policy, prompts * 2, uniforms, [EOS]), "cpu")
        logps = sequence_logprob(policy, *batch).chunk(2)
        with torch.no_grad():
            fixed = sequence_logprob(reference, *batch).chunk(2)
        preference_loss(*logps, *fixed, torch.zeros(64), BETA, SCALE).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0 <= kl() < 0.1 * before and before > 0.1


class Killed(BaseException):
    """Nothing catches it."""


def test_a_run_that_is_cut_ends_as_if_nothing_had_happened(setup, tmp_path, monkeypatch):
    """Between two samplings, with a checkpoint before; the saved pairs are the same too."""
    words = ["rloo_online.py", "--setup", setup, *FEW, "--steps", 8, "--sync-every", 2]
    words += ["--micro-batch-size", 3, "--save-pairs", "--out"]
    call(*words, tmp_path / "whole")
    metrics, margin = tmp_path / "cut" / "metrics.jsonl", common.margin

    def cut(*arguments, **options):
        if metrics.exists() and len(read_jsonl(metrics)) == 5:
            raise Killed
        return margin(*arguments, **options)

    monkeypatch.setattr(common, "margin", cut)
    with pytest.raises(Killed):
        call(*words, tmp_path / "cut")
    monkeypatch.undo()
    call(*words, tmp_path / "cut", "--resume")
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    pairs = [tmp_path / name / "online_pairs" / "train.jsonl" for name in ("cut", "whole")]
    assert pairs[0].read_bytes() == pairs[1].read_bytes()
    assert len({row["margin"] for row in read_jsonl(pairs[0])}) > 16
