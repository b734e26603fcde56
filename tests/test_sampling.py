"""The sampler: its distribution, its tokens, its ends."""

import copy
from collections import Counter

import pytest
import scipy.stats
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPTJConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
)

import common
import ipo_online
from common import collate, pad
from ipo_online import choose, log_softmax, response_states, sample
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


def some_prompts(count=24, longest=5):
    return [[2 + (i * 7 + j) % 8 for j in range(1 + i % longest)] for i in range(count)]


@pytest.mark.parametrize("in_place", [False, True])
def test_equals_the_naive_loop_token_for_token(family, in_place):
    """Also after the weights have changed under it, with fewer rows, and with prompts longer than its memory was made for."""
    model, tokenizer = tiny_model(family), letter_tokenizer()
    if in_place:
        model.compile(backend="eager")
    prompts, uniforms = (
        some_prompts(),
        torch.rand(24, 20, generator=torch.Generator().manual_seed(3)),
    )
    for change in range(3):
        with torch.no_grad():
            model.get_output_embeddings().weight += change / 10
            used = (
                [x * (14 if family != "gpt2" else 2) for x in prompts[:20]]
                if change == 2
                else prompts
            )
            expected = [
                naive(model.forward, x, u, tokenizer.eos_token_id) for x, u in zip(used, uniforms)
            ]
        assert sample(model, used, uniforms[: len(used)], tokenizer) == expected
        assert {len(y) for y in expected} != {20} and max(
            map(len, expected)
        ) == 20  # some end by themselves, some are cut
    assert hasattr(model, "decoders") == in_place


class Tape(TorchDispatchMode):
    """Records every operation with the tensors that it read and wrote, and replays them on the same memory: a graph on a CPU.

    As CUDA does, it knows nothing of Python: what a step computed from a Python number stays as it was when recorded.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(
            function
        )  # would wait for the GPU
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_that_was_recorded_once_samples_whole_responses(family, autocast):
    """Recorded on empty memory, as on a GPU, then replayed for every token of two batches, with new weights for the second."""
    model, tokenizer = (
        tiny_model(family, dtype=torch.float32 if autocast else torch.float64),
        letter_tokenizer(),
    )
    prompts, uniforms = (
        some_prompts(),
        torch.rand(24, 20, generator=torch.Generator().manual_seed(3)),
    )
    recorded, played = copy.deepcopy(model), copy.deepcopy(model)
    recorded._compiled_call_impl, played._compiled_call_impl = (
        recorded._call_impl,
        played._call_impl,
    )
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False),
    ):
        sample(recorded, prompts, uniforms, tokenizer)  # makes the memory
        (decoder,) = recorded.decoders.values()
        kept = {x.dtype for layer in decoder.cache.layers for x in (layer.keys, layer.values)}
        assert kept == {
            torch.bfloat16 if autocast else torch.float64
        }  # attention casts nothing more
        for x in (decoder.t, decoder.column, decoder.positions, decoder.tokens):
            x.zero_()
        decoder.mask.fill_(-torch.inf)
        with Tape() as decoder.graph:
            decoder.step()
        products = {
            f"{name}.weight"
            for name, part in recorded.named_modules()
            if type(part).__name__ in ("Linear", "Conv1D")
        }
        weights = [
            id(p)
            for name, p in recorded.named_parameters(remove_duplicate=False)
            if name in products
        ]
        read = {
            id(x)
            for call in decoder.graph.calls
            if "_to_copy" in str(call[0])
            for x in tree_leaves(call[1])
        }
        assert weights and not read.intersection(
            weights
        )  # nor any weight for a product of matrices
        for change in (0, 0.1):
            for each in (recorded, played):
                each.get_output_embeddings().weight += change
                each.get_input_embeddings().weight *= 1 + change
            responses = sample(recorded, prompts, uniforms, tokenizer)
            assert responses == sample(played, prompts, uniforms, tokenizer)
            assert len({len(y) for y in responses}) > 3 and max(map(len, responses)) == 20


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_sampled_from_is_what_is_scored(family, in_place, monkeypatch):
    """The distributions behind each token, from the cache and from the scoring path, fp32: within 1e-4 nats."""
    model, tokenizer = tiny_model(family, dtype=torch.float32), letter_tokenizer()
    if in_place:
        model.compile(backend="eager")
    seen = []
    choose = ipo_online.choose
    monkeypatch.setattr(
        ipo_online,
        "choose",
        lambda logits, u: seen.append(logits.log_softmax(-1)) or choose(logits, u),
    )
    prompts, uniforms = (
        some_prompts(4),
        torch.rand(4, 12, generator=torch.Generator().manual_seed(2)),
    )  # the first is padded
    responses = sample(model, prompts, uniforms, tokenizer)
    batch = collate(prompts[:1], responses[:1], tokenizer, "cpu")
    with torch.no_grad():
        scored = log_softmax(model, response_states(model, batch))
    assert len(scored) > 5
    assert torch.stack([logits[0] for logits in seen[: len(scored)]]).sub(scored).abs().max() < 1e-4


SIZES = {"vocab_size": 10, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 2048}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
NOT_RECORDED = [
    MistralConfig(sliding_window=4, **LLAMA),
    GPTJConfig(
        vocab_size=10, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_positions=64
    ),  # eager attention
    FalconConfig(**SIZES),  # its attention takes numbers from the CPU
    LlamaConfig(
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, **LLAMA
    ),  # asks the GPU
    LlamaConfig(
        rope_parameters=LONG, **LLAMA
    ),  # reads all rows by the longest, and those that ended with EOS stay in a Decoder
    MixtralConfig(
        num_local_experts=2, num_experts_per_tok=1, experts_implementation="eager", **LLAMA
    ),  # asks it too
]


@pytest.mark.parametrize("config", NOT_RECORDED, ids=lambda config: config.model_type)
def test_a_model_whose_step_cannot_be_recorded_says_so_once_and_samples_all_the_same(
    config, capsys
):
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_config(config).double().eval(), letter_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    model._compiled_call_impl = model._call_impl
    prompts, uniforms = (
        some_prompts(),
        torch.rand(24, 12, generator=torch.Generator().manual_seed(3)),
    )
    with torch.no_grad():
        expected = [naive(model, x, u, tokenizer.eos_token_id) for x, u in zip(prompts, uniforms)]
    for _ in range(2):
        assert sample(model, prompts, uniforms, tokenizer) == expected
    assert capsys.readouterr().out == (
        f"{type(model).__name__}: a decoding step cannot be recorded; it samples in a plain loop, which is slower\n"
    )


def test_heads_that_share_keys_and_values_get_no_copies_when_compiled():
    """What attention is given in the compiled step: two query heads as two rows, the one head of keys as it is kept."""
    seen = []

    def backend(graph, inputs):
        for node in graph.graph.nodes:
            if "scaled_dot_product_attention" in str(node.target):
                seen.append([tuple(x.meta["example_value"].shape) for x in node.args[:3]])
        return graph.forward

    torch.manual_seed(0)
    model, tokenizer = (
        common.fuse(LlamaForCausalLM(LlamaConfig(**LLAMA))).eval(),
        letter_tokenizer(),
    )
    uniforms = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    expected = sample(model, some_prompts(4), uniforms, tokenizer)
    model.compile(backend=backend, dynamic=False)
    assert sample(model, some_prompts(4), uniforms, tokenizer) == expected
    assert (
        seen == [[(4, 1, 2, 8), (4, 1, 64 + 8, 8), (4, 1, 64 + 8, 8)]] * SIZES["num_hidden_layers"]
    )


@pytest.mark.parametrize("heads", [2, 4])
def test_in_fp32_on_a_gpu_no_scores_are_kept_for_heads_that_share_keys(heads, monkeypatch):
    """As far as can be told without one: the attention of 4 query heads is given 4 heads of keys, where there is no mask."""
    calls = []
    monkeypatch.setattr(
        common, "sdpa_attention_forward", lambda module, *tensors, **options: calls.append(tensors)
    )
    with FakeTensorMode():
        query, key = torch.empty(3, 4, 7, 8), torch.empty(3, heads, 7, 8)
        common.attention(None, query, key, key)
        with monkeypatch.context() as patch:
            patch.setattr(type(key), "device", torch.device("cuda"))
            common.attention(None, query, key, key)
            common.attention(None, query, key.bfloat16(), key.bfloat16())
            common.attention(None, query, key, key, torch.empty(3, 1, 7, 7))
    assert [tensors[1].shape[1] for tensors in calls] == [heads, 4, heads, heads]


def test_a_compiled_step_stays_compiled_however_many_widths_there_are():
    compiled = []
    model, tokenizer = tiny_model("llama", dtype=torch.float32), letter_tokenizer()
    model.compile(
        backend=lambda graph, inputs: compiled.append(graph) or graph.forward, dynamic=False
    )
    for width in range(1, 11):
        sample(model, [[2] * 64 * width], torch.rand(1, 3), tokenizer)
    assert len(compiled) == 10


def test_an_evaluation_leaves_no_memory_behind(letters, monkeypatch):
    """Unless it was compiled, which is dear."""
    model, generated = letters.model, torch.Generator().manual_seed(1)
    for compiled in (False, True):
        monkeypatch.setattr(model, "decoders", {"of this size": object()}, raising=False)
        monkeypatch.setattr(model, "_compiled_call_impl", model._call_impl if compiled else None)
        ones = lambda model, prompts, uniforms, tokenizer: [[1]] * len(prompts)  # noqa: E731
        assert (
            common.sample_in_parts(ones, model, [[2]] * 3, 4, generated, letters.tokenizer, 2)
            == [[1]] * 3
        )
        assert len(model.decoders) == compiled


def test_does_not_depend_on_batch_mates(letters):
    prompts, uniforms = (
        [[2], [3, 4, 5, 6, 7], [8, 9]],
        torch.rand(3, 10, generator=torch.Generator().manual_seed(4)),
    )
    together = sample(letters.model, prompts, uniforms, letters.tokenizer)
    alone = [
        sample(letters.model, [x], u[None], letters.tokenizer)[0] for x, u in zip(prompts, uniforms)
    ]
    assert together == alone


def test_has_the_distribution_of_the_softmax():
    """Chi-square of 20,000 first and second tokens against the model's own probabilities."""
    model, tokenizer = (
        tiny_model(vocab_size=6, dtype=torch.float32),
        letter_tokenizer(letters="abcd"),
    )
    draws, prompt = 20_000, [2, 3]
    responses = sample(
        model,
        [prompt] * draws,
        torch.rand(draws, 2, generator=torch.Generator().manual_seed(5)),
        tokenizer,
    )
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
        assert (
            scipy.stats.chisquare(counts, probabilities / probabilities.sum() * counts.sum()).pvalue
            > 1e-3
        )


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_an_end_is_kept_when_sampled_and_never_invented(pad):
    tokenizer, model = letter_tokenizer(pad), tiny_model()
    responses = sample(
        model,
        [[2, 3]] * 200,
        torch.rand(200, 4, generator=torch.Generator().manual_seed(6)),
        tokenizer,
    )
    eos = tokenizer.eos_token_id
    assert all(eos not in y[:-1] for y in responses)
    cut = [y for y in responses if y[-1] != eos]
    assert cut and all(len(y) == 4 for y in cut)
    assert any(len(y) < 4 for y in responses)


def test_extreme_uniforms_give_valid_tokens():
    """The first or the last token that has any probability, never one that has none; and a token, whatever nan logits are."""
    logits = torch.randn(1000, 50, generator=torch.Generator().manual_seed(3)) * 5
    logits[:, [2, 48]] += 20
    logits[:, [0, 1, 49]] = -torch.inf
    for uniform, token in ((0.0, 2), (1 - 2**-24, 48)):
        chosen = choose(logits, torch.full((1000, 1), uniform))[:, 0]
        assert logits.gather(1, chosen[:, None]).isfinite().all()
        assert (chosen == token).float().mean() > 0.99
    assert choose(torch.full((2, 5), torch.nan), torch.rand(2, 1)).max() < 5


def test_has_the_distribution_of_generate(family):
    """Whole responses of transformers' own sampling loop and of ours, 4,000 each: one chi-square test of homogeneity."""
    model, tokenizer = (
        tiny_model(family, vocab_size=5, dtype=torch.float32),
        letter_tokenizer(letters="abc"),
    )
    prompts, draws = [[2, 3], [4]], 4000
    ours = sample(
        model,
        prompts * draws,
        torch.rand(2 * draws, 2, generator=torch.Generator().manual_seed(8)),
        tokenizer,
    )
    ids, mask = pad(prompts * draws, tokenizer, "cpu", "left")
    torch.manual_seed(9)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": 2}
    whole = model.generate(ids, attention_mask=mask, **options)
    theirs = [
        y[:1] if y[0] == tokenizer.eos_token_id else y for y in whole[:, ids.shape[1] :].tolist()
    ]
    for i in range(len(prompts)):
        counts = [Counter(map(tuple, responses[i :: len(prompts)])) for responses in (ours, theirs)]
        likely = [y for y in counts[0] | counts[1] if counts[0][y] + counts[1][y] >= 10]
        table = [[count[y] for y in likely] for count in counts]
        assert len(likely) > 3 and scipy.stats.chi2_contingency(table).pvalue > 1e-3
