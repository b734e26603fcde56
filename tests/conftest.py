"""Small models, a small start, and a way to call the commands as a reader would."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import common

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TANDEM_SHARED", REPO.parent / "shared"))  # real models and data, not part of the repository
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real models and data at {SHARED}")
LETTERS = "abcdefgh"
SCRIPTS = sorted(path.stem for path in REPO.glob("*_*.py") if path.stem.split("_")[1] in ("offline", "online", "hybrid"))

torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))


def call(*command, cwd=REPO, code=0, **environment) -> subprocess.CompletedProcess:
    """Run `python COMMAND` and check its exit code; a traceback is a failure whatever the code.

    Where folder and environment are the usual ones, this process runs it, as `__main__` and with its words in sys.argv: a
    new one takes seconds to import torch.
    """
    command = [str(word) for word in command]
    if cwd == REPO and not environment:
        done = call_here(command)
    else:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done


def call_here(command: list[str]) -> subprocess.CompletedProcess:
    """The command's exit code, and what it printed, as a process of its own would leave them."""
    module, words = (command[1], command[2:]) if command[0] == "-m" else (None, command[1:])
    script, stdout, stderr, before, code = str(REPO / command[0]), io.StringIO(), io.StringIO(), sys.argv, 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.argv = [module or script, *words]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), contextlib.chdir(REPO):
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        stderr.write("" if isinstance(end.code, int | None) else f"{end.code}\n")
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
        while common.LOCKS:  # a process that ends lets go of them
            common.LOCKS.pop().release()
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def letter_tokenizer(pad: str = "<pad>", letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token a letter; pad "<eos>" makes padding and end the same token."""
    names = dict.fromkeys([pad, "<eos>", *letters])
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=pad))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": pad, "eos_token": "<eos>"} | ({"unk_token": pad} if pad != "<eos>" else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "gpt2": (GPT2LMHeadModel, GPT2Config),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig),
}


def tiny_model(family: str = "llama", seed: int = 0, scale: float = 1.0, vocab_size: int = 10, dtype=torch.float64):
    """A random model with two layers of width 16; a larger scale makes its distributions sharper."""
    torch.manual_seed(seed)
    model, config = FAMILIES[family]
    names = {"gpt2": ("n_embd", "n_layer", "n_head", "n_positions")}
    names = names.get(family, ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"))
    sizes = dict(zip(names, (16, 2, 2, 64)))
    if family != "gpt2":
        sizes |= {"intermediate_size": 32, "num_key_value_heads": 2}
    model = model(config(vocab_size=vocab_size, bos_token_id=None, eos_token_id=1, pad_token_id=0, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 * scale)
    return model.to(dtype)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def letters():
    return SimpleNamespace(tokenizer=letter_tokenizer(), model=tiny_model())


MINIATURE = ["--sft-steps", 30, "--golden-steps", 20, "--proxy-steps", 20, "--policy-steps", 3, "--eval-prompts", 12]


def made_once(tmp_path_factory, name, make):
    """A folder that is made once for all test processes: whoever comes first makes it, the others wait."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The embedded world in miniature, made by the command in the README."""
    command = ["-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out"]
    return made_once(tmp_path_factory, "reviews", lambda folder: call(*command, folder))


SHORT = ["--steps", 3, "--batch-size", 4, "--eval-every", 2, "--eval-prompts", 8, "--kl-prompts", 4]


@pytest.fixture(scope="session")
def runs(start, tmp_path_factory):
    """One short run of each script from the miniature start: {script: folder}."""

    def run(script):
        command = [f"{script}.py", "--start", start, *SHORT, "--out"]
        return made_once(tmp_path_factory, f"run_{script}", lambda folder: call(*command, folder))

    return {script: run(script) for script in SCRIPTS}
