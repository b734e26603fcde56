"""What only a GPU can show, for one that has a GPU: make test-gpu. Elsewhere TANDEM_DEVICE=cpu runs the same tests, of the
plain loop or, where a model is compiled, of the step that a GPU would record."""

import copy
import json
import os

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import common
from common import collate, pad, pick_device
from ipo_online import log_softmax, response_states, sample, sequence_logprob
from tests.conftest import call_apart, letter_tokenizer, read_jsonl, tiny_model

DEVICE = os.environ.get("TANDEM_DEVICE")
pytestmark = pytest.mark.skipif(
    not DEVICE, reason="needs a GPU and TANDEM_DEVICE=cuda: make test-gpu"
)
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
}  # of probabilities and log-probabilities


def model_on_device(dtype=torch.float32, heads: int = 2):
    """A random Llama with heads of the width that fused kernels take; `heads` of its 4 have keys and values of their own."""
    pick_device(DEVICE)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        vocab_size=10,
        num_key_value_heads=heads,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **sizes,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return common.fuse(model).to(DEVICE, dtype)  # as load_model does


def some_prompts(rows: int) -> list[list[int]]:
    return [[2 + (i + j) % 8 for j in range(1 + 5 * (i % 4))] for i in range(rows)]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_prompt_reads_the_same_padded_and_alone(dtype):
    """Its padding sees nothing at all, and attention must not make nan of that."""
    model, tokenizer = model_on_device(dtype), letter_tokenizer()
    short, long = [3, 4, 5], [2 + i % 8 for i in range(200)]
    alone = model(torch.tensor([short], device=DEVICE)).logits[0, -1].log_softmax(-1)
    ids, mask = pad([short, long], tokenizer, DEVICE, "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    beside = model(ids, attention_mask=mask, position_ids=positions).logits[0, -1].log_softmax(-1)
    assert beside.isfinite().all() and (alone - beside).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("autocast", [False, True])
def test_fused_normalisation_gives_the_gradients_of_eight_kernels(autocast):
    """fp32 weights; under autocast the two may differ by what bf16 rounds off."""
    fused, tokenizer = model_on_device(), letter_tokenizer()
    plain = copy.deepcopy(fused)
    for part in plain.modules():
        part.__class__ = LlamaRMSNorm if type(part) is common.FusedRMSNorm else type(part)
    batch = collate(
        some_prompts(8), [[2 + i % 8] * (4 + i) + [1] for i in range(8)], tokenizer, DEVICE
    )
    for model in (fused, plain):
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16, enabled=autocast):
            sequence_logprob(model, batch).mean().backward()
    pairs = [(p.grad, q.grad) for p, q in zip(fused.parameters(), plain.parameters())]
    assert (
        sum(type(part) is common.FusedRMSNorm for part in fused.modules()) == 5 and len(pairs) > 20
    )
    assert all((p - q).norm() < (0.05 if autocast else 1e-5) * q.norm() for p, q in pairs)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_sampled_token_is_the_one_that_its_uniform_points_at(dtype, heads):
    """By the scoring path: it lies between the token's two ends of the cumulative distribution. With new weights too."""
    model, tokenizer = model_on_device(dtype, heads), letter_tokenizer()
    prompts, uniforms = (
        some_prompts(24),
        torch.rand(24, 20, generator=torch.Generator().manual_seed(3)),
    )
    for change in (0, 0.5):
        with torch.no_grad():
            model.get_output_embeddings().weight += (
                change * torch.arange(10, device=DEVICE)[:, None] / 10
            )
        responses = sample(model, prompts, uniforms, tokenizer)
        batch = collate(prompts, responses, tokenizer, DEVICE)
        with torch.no_grad():
            cdf = log_softmax(model, response_states(model, batch)).exp().cumsum(-1).cpu().double()
        tokens = torch.tensor([token for y in responses for token in y])
        points = torch.cat([u[: len(y)] for u, y in zip(uniforms, responses)]).double()
        ends = (
            cdf.gather(1, tokens[:, None])[:, 0],
            cdf.gather(1, (tokens - 1).clamp(min=0)[:, None])[:, 0] * (tokens > 0),
        )
        assert (points < ends[0] + TOLERANCE[dtype]).all() and (
            points >= ends[1] - TOLERANCE[dtype]
        ).all()
        assert len({len(y) for y in responses}) > 3 and len(set(tokens.tolist())) > 5


@pytest.mark.parametrize("compiled", [False, True])
def test_the_recorded_step_writes_what_the_plain_loop_writes(family, compiled):
    """Token for token in float64; two graphs live beside each other, and one goes on when the other is gone."""
    model, tokenizer = tiny_model(family).to(pick_device(DEVICE)), letter_tokenizer()
    plain = copy.deepcopy(model)
    plain.decoders = None
    if compiled:
        model.compile(dynamic=False)
    else:
        model._compiled_call_impl = (
            model._call_impl
        )  # so that both stay, as they do when they were compiled
    uniforms = torch.rand(40, 12, generator=torch.Generator().manual_seed(3))
    few, many = ((some_prompts(rows), uniforms[:rows], tokenizer) for rows in (5, 40))
    for _ in range(2):
        for asked in (few, many):
            assert sample(model, *asked) == sample(plain, *asked)
        with torch.no_grad():
            for each in (model, plain):
                each.get_output_embeddings().weight *= 1.1
    assert len(model.decoders) == 2
    model.decoders.pop(next(iter(model.decoders)))
    torch.empty(2**24, device=DEVICE).fill_(torch.nan)  # what was given back is written over
    assert sample(model, *many) == sample(plain, *many)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--precision", "bf16"],
        ["--compile"],
        ["--precision", "bf16", "--gradient-checkpointing", "selective"],
    ],
    ids=["fp32", "bf16", "compiled", "checkpointed"],
)
def test_an_online_run(setup, tmp_path, options):
    """Evaluations between the steps take the memory of the recorded step, and give it back."""
    command = [
        "ipo_online.py",
        "--setup",
        setup,
        "--device",
        DEVICE,
        "--steps",
        12,
        "--eval-every",
        4,
        *options,
    ]
    call_apart(*command, "--eval-prompts", 16, "--kl-prompts", 8, "--out", tmp_path / "run")
    metrics, evals = (
        read_jsonl(tmp_path / "run" / f"{name}.jsonl") for name in ("metrics", "evals")
    )
    assert metrics[0]["loss"] == 25 and metrics[0]["rewards/margins"] == 0
    assert [row["step"] for row in evals] == [0, 4, 8, 12] and evals[0]["kl"] == 0 < evals[-1][
        "kl"
    ] < 20


def test_the_first_steps_are_those_of_a_cpu(setup, tmp_path):
    """Offline, where nothing is sampled: the losses in fp32 agree, and the optimizer's steps with them."""
    losses = {}
    for device in {"cpu", DEVICE}:
        command = [
            "ipo_offline.py",
            "--setup",
            setup,
            "--device",
            device,
            "--steps",
            6,
            "--eval-prompts",
            8,
        ]
        call_apart(*command, "--out", tmp_path / device)
        losses[device] = [row["loss"] for row in read_jsonl(tmp_path / device / "metrics.jsonl")]
        assert json.loads((tmp_path / device / "args.json").read_text())["device"] == device
    assert losses["cpu"] == pytest.approx(losses[DEVICE], rel=1e-3)
