"""The sampler: its distribution, its tokens, its ends."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ipo_online import sample
from tests.conftest import tiny_model
from tests.test_logprobs import EOS, log_probabilities


def distribution(model, ids):
    """(V,) the probabilities of the next token: of one text, no padding, in NumPy."""
    return np.exp(log_probabilities(model, ids))


def naive(model, prompt, uniforms):
    """A response by the inverse CDF of the whole forward pass, a token at a time."""
    response = []
    while len(response) < len(uniforms) and response[-1:] != [EOS]:
        cdf = distribution(model, prompt + response).cumsum()
        response.append(int(np.searchsorted(cdf, uniforms[len(response)], side="right")))
    return response


def some_prompts(count):
    return [[2 + (i * 7 + j) % 8 for j in range(1 + i % 5)] for i in range(count)]


def some_uniforms(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def test_tokens_are_those_of_the_whole_forward_pass(family):
    """Prompts of many lengths in one batch; some responses end at once, some late, some are cut."""
    model, prompts, uniforms = tiny_model(family), some_prompts(24), some_uniforms(24, 20)
    expected = [naive(model, x, u) for x, u in zip(prompts, uniforms.tolist())]
    assert sample(model, prompts, uniforms, [EOS]) == expected
    lengths = {len(y) for y in expected}
    assert len(lengths) > 5 and {1, 20} <= lengths
    assert any(len(y) == 20 and EOS not in y for y in expected)
    assert all(EOS not in y[:-1] for y in expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_response_does_not_depend_on_its_batch_mates(family):
    """Nor on the padding that they bring: gpt2 has absolute positions."""
    model, prompts, uniforms = tiny_model(family), some_prompts(10), some_uniforms(10, 12)
    together = sample(model, prompts, uniforms, [EOS])
    assert together == [sample(model, [x], u[None], [EOS])[0] for x, u in zip(prompts, uniforms)]
    longer = sample(model, [*prompts, [2] * 40], torch.cat([uniforms, some_uniforms(1, 12)]), [EOS])
    assert longer[:-1] == together


def test_the_whole_vocabulary_is_sampled_from():
    """Of 300 tokens, evenly spaced uniforms give each as often as its probability says, ±1.

    No top-k, top-p or temperature: also those beyond rank 50 and 200 come, and most of the mass is
    beyond rank 50.
    """
    model = tiny_model(scale=0.3, vocab_size=300, dtype=torch.float32)
    draws, prompt = 20_000, [2, 3]
    uniforms = (torch.arange(draws) + 0.5)[:, None] / draws
    tokens = [y[0] for y in sample(model, [prompt] * draws, uniforms, [EOS])]
    expected = distribution(model, prompt)
    counts = np.bincount(tokens, minlength=300)
    assert np.abs(counts - expected * draws).max() < 1.01
    by_rank = counts[(-expected).argsort()]
    assert by_rank[50:].sum() > draws / 2 and by_rank[200:].sum() > draws / 100


def test_extreme_uniforms_give_tokens_that_have_a_probability():
    """The first or last of them; and a token, whatever logits that are no numbers say."""
    model, logits = tiny_model(), torch.randn(1000, 50, generator=torch.Generator().manual_seed(3))
    logits[:, [2, 48]] += 20
    logits[:, [0, 1, 49]] = -torch.inf
    model.forward = lambda ids, **_: SimpleNamespace(logits=logits[: len(ids), None])
    for uniform, token in ((0.0, 2), (1 - 2**-24, 48)):
        uniforms = torch.full((1000, 1), uniform)
        assert sample(model, [[2]] * 1000, uniforms, [EOS]) == [[token]] * 1000
    logits.fill_(torch.nan)
    assert all(0 <= y[0] < 50 for y in sample(model, [[2]] * 9, some_uniforms(9, 1), [EOS]))
