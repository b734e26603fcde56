"""Log-probabilities of responses and KL: what counts, and what must not matter."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common import collate, load_policy
from ipo_online import kl_to_sft, response_logprobs, sequence_logprob
from tests.conftest import letter_tokenizer, tiny_model

EOS = 1
ROWS = [  # prompt, response: with and without EOS, and with the id that pads
    ([2, 3, 4], [5, 6, EOS]),
    ([2, 3, 4], [5, 6]),
    ([7], [8, 0, 8, 8, 9]),
    ([3, 3, 3, 3, 3, 2], [EOS]),
    ([0, 5], [6, 7, 0]),
]


def batch_of(rows):
    return collate([x for x, _ in rows], [y for _, y in rows], "cpu")


def log_probabilities(model, ids):
    """(V,) of the next token: of one text, no padding, in NumPy."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    return logits - np.logaddexp.reduce(logits)


def prefixes(prompt, response):
    return [prompt + response[:i] for i in range(len(response))]


def test_a_response_is_the_sum_of_its_tokens(family):
    """One text at a time, a token at a time; EOS counts where it was written."""
    model = tiny_model(family)
    with torch.no_grad():
        together = sequence_logprob(model, *batch_of(ROWS)).tolist()
    for got, (prompt, response) in zip(together, ROWS):
        read = zip(prefixes(prompt, response), response)
        by_hand = sum(log_probabilities(model, ids)[token] for ids, token in read)
        assert got == pytest.approx(by_hand, abs=1e-9)
    assert together[0] < together[1] - 0.1  # they differ by EOS


def test_kl_is_the_sum_over_the_whole_vocabulary(family):
    """At each prefix of a response: sum of p (log p - log q)."""
    policy, sft = tiny_model(family, seed=1), tiny_model(family, seed=2)
    for got, row in zip(kl_to_sft(policy, sft, *batch_of(ROWS)).tolist(), ROWS):
        p, q = (
            np.array([log_probabilities(model, ids) for ids in prefixes(*row)])
            for model in (policy, sft)
        )
        assert got == pytest.approx((np.exp(p) * (p - q)).sum(), abs=1e-9) and got > 0.01


def every_response(letters: int, length: int):
    """All that sampling at most `length` of `letters` tokens may give: ended ones and cut ones."""
    others = [token for token in range(letters) if token != EOS]
    for n in range(length):
        yield from ([*body, EOS] for body in itertools.product(others, repeat=n))
    yield from (list(body) for body in itertools.product(others, repeat=length))


def test_kl_is_exact_in_expectation(family):
    """Over all responses y: pi(y) kl_to_sft(y) sums to pi(y) log(pi(y) / sft(y)), to 1e-10."""
    policy, sft = tiny_model(family, seed=1, vocab_size=4), tiny_model(family, seed=2, vocab_size=4)
    batch = batch_of([([2, 3], response) for response in every_response(4, 4)])
    with torch.no_grad():
        log_p, log_q = sequence_logprob(policy, *batch), sequence_logprob(sft, *batch)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    exact = (log_p.exp() * (log_p - log_q)).sum().item()
    expected = (log_p.exp() * kl_to_sft(policy, sft, *batch)).sum().item()
    assert expected == pytest.approx(exact, abs=1e-10) and exact > 0.01


def test_kl_is_never_negative():
    """Not even where rounding is all there is: models that hardly differ, 50,000 tokens, fp32."""
    options = {"seed": 1, "scale": 0.3, "vocab_size": 50_000, "dtype": torch.float32}
    policy, random = tiny_model("gpt2", **options), torch.Generator().manual_seed(0)
    tokens = torch.randint(50_000, (16, 1), generator=random).tolist()
    batch = batch_of([([6, 7], token) for token in tokens])
    assert kl_to_sft(policy, policy, *batch).abs().max() == 0
    for nearness in (1e-7, 1e-6, 1e-5, 1e-4, 1e-2):
        sft = tiny_model("gpt2", **options)
        with torch.no_grad():
            for parameter in sft.parameters():
                noise = nearness * parameter.abs().mean()
                parameter.add_(noise * torch.randn(parameter.shape, generator=random))
        assert kl_to_sft(policy, sft, *batch).min() > (-1e-8 if nearness < 1e-2 else 0)


def test_log_probabilities_are_fp32_under_autocast():
    model, (ids, mask) = tiny_model(dtype=torch.float32), batch_of(ROWS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logprobs = response_logprobs(model, ids, mask.shape[1])
    assert logprobs.dtype == torch.float32 and logprobs.shape == (*mask.shape, 10)
    assert (logprobs.exp().sum(2) - 1).abs().max() < 1e-6  # bf16 would miss this by 1e-3


DROPOUT = {
    "gpt2": {"resid_pdrop": 0.5},
    "opt": {"dropout": 0.5, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "llama": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("name", DROPOUT)
def test_a_policy_has_no_dropout_and_checkpointing_keeps_its_gradient(name, tmp_path):
    """In training, whatever its config says. What is computed again is the same, to the bit."""
    tiny_model(name, dtype=torch.float32, **DROPOUT[name]).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    policy, _ = load_policy(str(tmp_path), 16)
    batch, seen, flops = batch_of(ROWS), [], []
    for checkpointing in (False, True):
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.no_grad():
            asleep = sequence_logprob(policy.eval(), *batch)
        logprobs = sequence_logprob(policy.train(), *batch)
        assert torch.equal(logprobs, asleep)
        policy.zero_grad()
        with FlopCounterMode(display=False) as counter:
            logprobs.sum().backward()
        flops.append(counter.get_total_flops())
        seen.append([parameter.grad.clone() for parameter in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and flops[1] > flops[0] > 0
