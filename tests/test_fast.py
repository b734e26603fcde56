"""fast.py gives the tokens of the scripts' own `sample`: on a CPU without graphs, and with
TANDEM_DEVICE=cuda (make test-gpu) with them."""

import os

import pytest
import torch

import fast
from common import collate
from ipo_online import response_logprobs, sample
from tests.conftest import call, call_apart, read_jsonl, tiny_model

DEVICE = os.environ.get("TANDEM_DEVICE", "cpu")
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: make test-gpu")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}
PROMPTS = [[2 + (i + j) % 8 for j in range(1 + 5 * (i % 4))] for i in range(40)]
UNIFORMS = torch.rand(40, 20, generator=torch.Generator().manual_seed(3))


def grouped_llama(dtype):
    """A random Llama of which 2 heads share keys and values, its head tied to its embeddings."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    heads = {"num_attention_heads": 4, "tie_word_embeddings": True}
    return tiny_model(scale=0.4, **sizes, **heads).to(DEVICE, dtype)


def test_it_samples_the_same_tokens(family):
    """In float64; batches of several sizes, and weights that change between them."""
    model = tiny_model(family).to(DEVICE)
    for rows in (5, 40, 5):
        asked = PROMPTS[:rows], UNIFORMS[:rows], [1]
        responses = sample(model, *asked)
        assert fast.sample(model, *asked) == responses and len(set(map(len, responses))) > 1
        with torch.no_grad():
            model.get_output_embeddings().weight *= 1.1


CASES = [(dtype, False) for dtype in TOLERANCE] + [(torch.float32, True), (torch.bfloat16, True)]


@pytest.mark.parametrize("dtype, autocast", CASES, ids=str)
def test_every_token_is_the_one_that_its_uniform_points_at(dtype, autocast):
    """By the scoring path: the uniform lies between the token's two ends of the CDF. After an
    update too, whose weights must be cast again under autocast."""
    model = grouped_llama(dtype)
    names = {name for part in model.modules() for name in vars(part)}
    near = TOLERANCE[torch.bfloat16] if autocast else TOLERANCE[dtype]
    for factor in (1.0, -1.0):
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight *= factor
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            responses = fast.sample(model, PROMPTS, UNIFORMS, [1])
        assert len(set(map(len, responses))) > 3
        for prompt, response, uniforms in zip(PROMPTS, responses, UNIFORMS):
            ids, mask = collate([prompt], [response], DEVICE)
            with torch.no_grad():
                cdf = response_logprobs(model, ids, mask.shape[1])[0].exp().cumsum(1)
            for token, u, ends in zip(response, uniforms.tolist(), cdf.tolist()):
                assert (ends[token - 1] if token else 0) - near <= u <= ends[token] + near
    # attention and normalisation are replaced while a step is taken, and no longer
    assert model.config._attn_implementation == "sdpa"
    assert {name for part in model.modules() for name in vars(part)} == names | {"recorded_steps"}


def test_layers_that_it_does_not_know_are_named():
    model = tiny_model("gemma2", head_dim=8, sliding_window=4)
    with pytest.raises(SystemExit, match="error: --fast: gemma2 has layers of other kinds"):
        fast.sample(model, PROMPTS, UNIFORMS, [1])


@pytest.mark.parametrize("options", [[], ["--mixed-precision", "bf16"]], ids=["fp32", "bf16"])
def test_an_online_run(options, setup, tmp_path):
    """The pairs are those of a run without --fast; on a GPU its rounding may move a token."""
    command = ["ipo_online.py", "--setup", setup, "--steps", 4, "--eval-every", 2, "--eval-at", 2]
    command += ["--eval-prompts", 8, "--save-pairs", "--batch-size", 4, *options, "--out"]
    call(*command, tmp_path / "fast", "--fast")
    logs = (tmp_path / "fast" / f"{name}.jsonl" for name in ("metrics", "evals"))
    metrics, evals = map(read_jsonl, logs)
    assert metrics[0]["loss"] == 25 and evals[0]["kl"] == 0 < evals[-1]["kl"] < 20
    if DEVICE == "cpu" and not options:
        call(*command, tmp_path / "plain")
        files = [tmp_path / name / "online_pairs" / "train.jsonl" for name in ("fast", "plain")]
        assert files[0].read_text() == files[1].read_text()


@on_gpu
def test_the_first_steps_are_those_of_a_cpu(setup, tmp_path):
    """Offline, where nothing is sampled."""
    losses = []
    for name, places in (("gpu", {}), ("cpu", {"ACCELERATE_USE_CPU": "1"})):
        command = ["ipo_offline.py", "--setup", setup, "--steps", 6, "--eval-prompts", 8, "--out"]
        call_apart(*command, tmp_path / name, **places)
        losses.append([row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
