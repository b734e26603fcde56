"""The sampler: its distribution, its tokens, its ends."""

from collections import Counter

import pytest
import scipy.stats
import torch

from common import pad
from ipo_online import sample
from tests.conftest import letter_tokenizer, tiny_model


def naive(model, prompt, uniforms, eos):
    """One prompt, no cache, no padding, no batch: the inverse CDF of the full forward pass, a token at a time."""
    ids = list(prompt)
    for u in uniforms.tolist():
        cdf = model(torch.tensor([ids])).logits[0, -1].softmax(-1).cumsum(-1)
        token = min(int((cdf <= u * cdf[-1]).sum()), len(cdf) - 1)
        ids.append(token)
        if token == eos:
            break
    return ids[len(prompt) :]


def test_equals_the_naive_loop_token_for_token(family):
    model, tokenizer = tiny_model(family), letter_tokenizer()
    prompts = [[2 + (i * 7 + j) % 8 for j in range(1 + i % 5)] for i in range(24)]
    uniforms = torch.rand(24, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = [naive(model, prompt, u, tokenizer.eos_token_id) for prompt, u in zip(prompts, uniforms)]
    assert sample(model, prompts, uniforms, tokenizer) == expected
    assert {len(y) for y in expected} != {12} and max(map(len, expected)) == 12  # some end by themselves, some are cut


def test_does_not_depend_on_batch_mates(letters):
    prompts, uniforms = [[2], [3, 4, 5, 6, 7], [8, 9]], torch.rand(3, 10, generator=torch.Generator().manual_seed(4))
    together = sample(letters.model, prompts, uniforms, letters.tokenizer)
    alone = [sample(letters.model, [x], u[None], letters.tokenizer)[0] for x, u in zip(prompts, uniforms)]
    assert together == alone


def test_has_the_distribution_of_the_softmax():
    """Chi-square of 20,000 first and second tokens against the model's own probabilities."""
    model, tokenizer = tiny_model(vocab_size=6, dtype=torch.float32), letter_tokenizer(letters="abcd")
    draws, prompt = 20_000, [2, 3]
    responses = sample(model, [prompt] * draws, torch.rand(draws, 2, generator=torch.Generator().manual_seed(5)), tokenizer)
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        likeliest = max(set(range(6)) - {1}, key=lambda token: first[token])
        second = model(torch.tensor([[*prompt, likeliest]])).logits[0, -1].double().softmax(-1)
    for probabilities, tokens in (
        (first, [y[0] for y in responses]),
        (second, [y[1] for y in responses if y[0] == likeliest]),
    ):
        counts = torch.bincount(torch.tensor(tokens), minlength=6).double()
        assert (counts[probabilities * len(tokens) > 5] > 0).all()
        assert scipy.stats.chisquare(counts, probabilities / probabilities.sum() * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_an_end_is_kept_when_sampled_and_never_invented(pad):
    tokenizer, model = letter_tokenizer(pad), tiny_model()
    responses = sample(model, [[2, 3]] * 200, torch.rand(200, 4, generator=torch.Generator().manual_seed(6)), tokenizer)
    eos = tokenizer.eos_token_id
    assert all(eos not in y[:-1] for y in responses)
    cut = [y for y in responses if y[-1] != eos]
    assert cut and all(len(y) == 4 for y in cut)
    assert any(len(y) < 4 for y in responses)


def test_extreme_uniforms_give_valid_tokens():
    model, tokenizer = tiny_model(dtype=torch.float32), letter_tokenizer()
    below_one = torch.full((4, 3), 1 - 2**-24)
    for uniforms in (torch.zeros(4, 3), below_one):
        for response in sample(model, [[2, 3]] * 4, uniforms, tokenizer):
            assert response and all(0 <= token < 10 for token in response)


def test_has_the_distribution_of_generate(family):
    """Whole responses of transformers' own sampling loop and of ours, 4,000 each: one chi-square test of homogeneity."""
    model, tokenizer = tiny_model(family, vocab_size=5, dtype=torch.float32), letter_tokenizer(letters="abc")
    prompts, draws = [[2, 3], [4]], 4000
    ours = sample(model, prompts * draws, torch.rand(2 * draws, 2, generator=torch.Generator().manual_seed(8)), tokenizer)
    ids, mask = pad(prompts * draws, tokenizer, "cpu", "left")
    torch.manual_seed(9)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": 2}
    whole = model.generate(ids, attention_mask=mask, **options)
    theirs = [y[:1] if y[0] == tokenizer.eos_token_id else y for y in whole[:, ids.shape[1] :].tolist()]
    for i in range(len(prompts)):
        counts = [Counter(map(tuple, responses[i :: len(prompts)])) for responses in (ours, theirs)]
        likely = [y for y in counts[0] | counts[1] if counts[0][y] + counts[1][y] >= 10]
        table = [[count[y] for y in likely] for count in counts]
        assert len(likely) > 3 and scipy.stats.chi2_contingency(table).pvalue > 1e-3
