"""Sequence log-probabilities: what counts, and what must not matter."""

import copy
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig
from transformers.models.llama.modeling_llama import LlamaMLP

import ipo_online
from common import LLAMAS, Batch, FusedRMSNorm, LeanMLP, collate, fuse, recomputing
from ipo_online import kl_to_sft, log_softmax, sequence_logprob
from tests.conftest import letter_tokenizer, tiny_model


def by_hand(model, prompt, response):
    """log pi(y | x), a token at a time, without padding, batch or mask."""
    ids, total = list(prompt), 0.0
    for token in response:
        total += model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


ROWS = [([2, 3, 4], [5, 6, 1]), ([7], [8, 8, 8, 8, 9]), ([3, 3, 3, 3, 3, 2], [1]), ([4, 5], [6, 7])]


def test_equals_a_loop_over_tokens(family):
    model, tokenizer = tiny_model(family), letter_tokenizer()
    batch = collate([x for x, _ in ROWS], [y for _, y in ROWS], tokenizer, "cpu")
    with torch.no_grad():
        got = sequence_logprob(model, batch)
        assert got.tolist() == pytest.approx([by_hand(model, x, y) for x, y in ROWS], abs=1e-9)


def test_unchanged_by_padding_and_batch_mates(family):
    model, tokenizer = tiny_model(family), letter_tokenizer()
    batch = collate([x for x, _ in ROWS], [y for _, y in ROWS], tokenizer, "cpu")
    with torch.no_grad():
        together = sequence_logprob(model, batch)
        alone = torch.cat(
            [sequence_logprob(model, collate([x], [y], tokenizer, "cpu")) for x, y in ROWS]
        )
        padded = [
            torch.nn.functional.pad(t, (0, 4), value=v)
            for t, v in ((batch.ids, 9), (batch.mask, False))
        ]
        padded = sequence_logprob(model, Batch(*padded))
        backwards = sequence_logprob(model, Batch(*(t.flip(0) for t in batch))).flip(0)
    for other in (alone, padded, backwards):
        assert torch.allclose(together, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_the_end_token_counts_once_where_it_was_generated(pad):
    """Also where padding is the end token: a mask made by comparing ids would lose it."""
    tokenizer, model = letter_tokenizer(pad), tiny_model()
    eos = tokenizer.eos_token_id
    batch = collate([[2, 3]] * 2, [[5, 6, eos], [5, 6]], tokenizer, "cpu")
    assert batch.mask.long().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]
    with torch.no_grad():
        ended, cut = sequence_logprob(model, batch).tolist()
    assert ended == pytest.approx(by_hand(model, [2, 3], [5, 6, eos]), abs=1e-9)
    assert cut == pytest.approx(by_hand(model, [2, 3], [5, 6]), abs=1e-9)
    assert ended < cut


def test_log_softmax_is_fp32_under_autocast():
    model, states = (
        tiny_model(dtype=torch.float32),
        torch.randn(3, 16, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logprobs = log_softmax(model, states)
    assert logprobs.dtype == torch.float32 and logprobs.shape == (3, 10)
    assert torch.allclose(
        logprobs.exp().sum(-1), torch.ones(3), atol=1e-6
    )  # bf16 would miss this by 1e-3


@pytest.mark.parametrize("family", LLAMAS)
@pytest.mark.parametrize("autocast", [False, True])
def test_fused_modules_change_no_bit(family, autocast):
    """Of log-probabilities, and in fp32 of gradients; under autocast those of the products that read a norm add up in bf16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 4}
    config = AutoConfig.for_model(
        family.lower(), vocab_size=10, num_attention_heads=4, num_key_value_heads=2, **sizes
    )
    config.pad_token_id = None
    plain, tokenizer = AutoModelForCausalLM.from_config(config).eval(), letter_tokenizer()
    for parameter in plain.parameters():  # norms too: they begin as ones
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    fused = fuse(copy.deepcopy(plain))
    kinds = Counter(type(part) for part in fused.modules())
    # two norms in each layer and one behind them; Qwen3 has two more in its attention
    assert kinds[FusedRMSNorm] == (9 if family == "Qwen3" else 5) and kinds[LeanMLP] == 2
    batch, found = collate([x for x, _ in ROWS], [y for _, y in ROWS], tokenizer, "cpu"), []
    for model in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logprobs = sequence_logprob(model, batch)
        logprobs.sum().backward()
        found.append([logprobs, *(parameter.grad for parameter in model.parameters())])
    assert torch.equal(found[0][0], found[1][0]) and len(found[0]) > 20
    assert all((a - b).norm() <= (0.02 if autocast else 0) * a.norm() for a, b in zip(*found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=str)
def test_a_lean_feed_forward_network_keeps_two_tensors_and_no_other_gradient(dtype):
    """Gate and up, where PyTorch keeps four of that size; the same output and gradients, to the bit. None: autocast."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=64)
    plain, states = LlamaMLP(config).to(dtype or torch.float32), torch.randn(3, 50, 16, dtype=dtype)
    lean, found, kept = copy.deepcopy(plain), [], []
    lean.__class__ = LeanMLP
    for module in (plain, lean):
        mine = states.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append((len(found), t)) or t, lambda t: t
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
                out = module(mine)
        out.square().sum().backward()
        found.append([out, mine.grad, *(parameter.grad for parameter in module.parameters())])
    wide = {(number, t.data_ptr()) for number, t in kept if t.numel() == 3 * 50 * 64}
    assert Counter(number for number, _ in wide) == {0: 4, 1: 2}
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*found, strict=True))


def test_a_feed_forward_network_that_is_not_llamas_stays_as_it_is():
    """Another activation, a bias, and an adapter that has taken the place of a product after the model was loaded."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for told in ({"hidden_act": "gelu"}, {"mlp_bias": True}):
        model = fuse(AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **told)))
        assert type(model.model.layers[0].mlp) is LlamaMLP
    adapted = LlamaMLP(LlamaConfig(**sizes))
    adapted.__class__ = LeanMLP
    adapted.down_proj = torch.nn.Sequential(adapted.down_proj, torch.nn.Linear(16, 16))
    states = torch.randn(3, 16)
    assert torch.equal(adapted(states), LlamaMLP.forward(adapted, states))


def test_chunks_over_the_vocabulary_change_nothing(family, monkeypatch):
    """Log-probabilities, gradients and KL with logits for three tokens at a time, and for all at once."""
    policy, sft, tokenizer = (
        tiny_model(family, seed=1),
        tiny_model(family, seed=2),
        letter_tokenizer(),
    )
    batch, seen = collate([x for x, _ in ROWS], [y for _, y in ROWS], tokenizer, "cpu"), []
    for chunk in (3, 4096):
        monkeypatch.setattr(ipo_online, "CHUNK", chunk)
        policy.zero_grad()
        logprobs = sequence_logprob(policy, batch)
        logprobs.pow(2).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        seen.append(torch.cat([logprobs.detach(), kl_to_sft(policy, sft, batch), gradient]))
    assert torch.allclose(*seen, rtol=1e-9, atol=1e-12)


DROPPING = {  # in modules of its own, and by the layer itself
    "gpt2": GPT2Config(
        vocab_size=10,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.5,
        attn_pdrop=0.5,
    ),
    "opt": OPTConfig(
        vocab_size=10,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        dropout=0.5,
    ),
    "llama": LlamaConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.5,
    ),
}
DROPPING["llama"].intermediate_size = 32


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_recomputing_keeps_gradients_and_leaves_dropout_off(name, dtype):
    """Gradient checkpointing of a model with dropout, which the policy must not have: the same gradients, to the bit.

    Full keeps next to nothing and computes every product again; selective computes no product twice.
    """
    config = DROPPING[name]
    policy, gradients, kept, flops = (
        fuse(AutoModelForCausalLM.from_config(config)).to(dtype).eval(),
        {},
        {},
        {},
    )
    batch = collate([[2, 3]] * 8, [[4, 5, 1]] * 8, letter_tokenizer(), "cpu")
    for checkpointing in ("off", "selective", "full"):
        with MemTracker() as tracker, recomputing(policy, checkpointing):
            logprobs = sequence_logprob(policy, batch)
            total = tracker.get_tracker_snapshot("current")[torch.device("cpu")]["Total"]
        kept[checkpointing] = total - sum(p.nbytes for p in policy.parameters())
        with FlopCounterMode(display=False) as counter:
            logprobs.sum().backward()
        flops[checkpointing] = counter.get_total_flops()
        gradients[checkpointing] = torch.cat([p.grad.flatten() for p in policy.parameters()])
        policy.zero_grad()
    assert torch.equal(gradients["off"], gradients["selective"]) and torch.equal(
        gradients["off"], gradients["full"]
    )
    assert kept["full"] < kept["selective"] < kept["off"] and kept["full"] < kept["off"] / 2
    assert flops["selective"] == flops["off"] < flops["full"]
    assert not any(module.training or module._forward_hooks for module in policy.modules())
    told = {"gpt2": "resid_pdrop", "opt": "dropout", "llama": "attention_dropout"}
    assert vars(policy.config)[told[name]] == 0.5  # as it was


def test_a_layer_that_is_computed_again_stops_before_its_last_product():
    """As many operations in the backward pass of a Llama that is fused as of one that is not."""
    plain, flops = AutoModelForCausalLM.from_config(DROPPING["llama"]).eval(), []
    for policy in (plain, fuse(copy.deepcopy(plain))):
        with recomputing(policy, "full"):
            logprobs = sequence_logprob(
                policy, collate([[2, 3]] * 8, [[4, 5, 1]] * 8, letter_tokenizer(), "cpu")
            )
        with FlopCounterMode(display=False) as counter:
            logprobs.sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


def every_response(letters: int, length: int, eos: int):
    """All outcomes of sampling at most `length` tokens from `letters` tokens: the ended ones and the cut ones."""
    others = [token for token in range(letters) if token != eos]
    for n in range(length):
        yield from ([*body, eos] for body in itertools.product(others, repeat=n))
    yield from (list(body) for body in itertools.product(others, repeat=length))


def test_kl_estimator_is_exact_in_expectation(family):
    """sum over all y of pi(y) x estimator(y) equals sum of pi(y) log(pi(y) / sft(y)), to 1e-10."""
    policy, sft = tiny_model(family, seed=1, vocab_size=4), tiny_model(family, seed=2, vocab_size=4)
    tokenizer = letter_tokenizer(letters="ab")
    responses = list(every_response(4, 4, eos=1))
    batch = collate([[2, 3]] * len(responses), responses, tokenizer, "cpu")
    with torch.no_grad():
        log_p, log_q = sequence_logprob(policy, batch), sequence_logprob(sft, batch)
        estimate = kl_to_sft(policy, sft, batch)
    p = log_p.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    exact = (p * (log_p - log_q)).sum().item()
    assert exact > 0.01  # the two models do differ
    assert (p * estimate).sum().item() == pytest.approx(exact, abs=1e-10)


def test_kl_terms_are_never_negative_and_zero_for_the_same_model():
    """Not even where rounding is all there is: two models that hardly differ, over 5,000 tokens, in fp32."""
    tokenizer = letter_tokenizer()
    policy = tiny_model(seed=1, vocab_size=5000, dtype=torch.float32)
    prefixes = torch.randint(5000, (16, 1), generator=torch.Generator().manual_seed(0)).tolist()
    batch = collate([[6, 7]] * 16, prefixes, tokenizer, "cpu")  # one token each: a sum of one term
    for nearness in (1e-6, 1e-5, 1e-4, 1e-3):
        sft = tiny_model(seed=1, vocab_size=5000, dtype=torch.float32)
        with torch.no_grad():
            for parameter in sft.parameters():
                parameter.add_(
                    nearness
                    * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                )
        assert kl_to_sft(policy, sft, batch).min() > -1e-7
    assert kl_to_sft(policy, sft, batch).min() > 0
    assert kl_to_sft(policy, policy, batch).abs().max() == 0


def test_kl_by_hand():
    """A policy that says a with 3/4 and b with 1/4, against 1/2 and 1/2: 3/4 log 3/2 + 1/4 log 1/2 nats a token."""

    class Fixed(torch.nn.Module):
        def __init__(self, probabilities):
            super().__init__()
            self.logits = torch.tensor(probabilities, dtype=torch.float64).log()

        def base_model(self, ids, **_):
            return SimpleNamespace(last_hidden_state=ids[:, :, None])

        def get_output_embeddings(self):
            return lambda states: self.logits.expand(len(states), -1)

    batch = Batch(torch.zeros(2, 4, dtype=int), torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]]).bool())
    got = kl_to_sft(Fixed([0.75, 0.25]), Fixed([0.5, 0.5]), batch)
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert got.tolist() == pytest.approx([3 * one, 2 * one], abs=1e-12)
