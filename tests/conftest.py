"""Small models, a small setup, and a way to call the commands as a reader would."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
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
import prepare.__main__ as prepare

if "TANDEM_DEVICE" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is promised to the bit is promised on a CPU
REPO = Path(__file__).resolve().parent.parent
# real models and data, which are not part of the repository
SHARED = Path(os.environ.get("TANDEM_SHARED", REPO.parent / "shared"))
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no real models and data at {SHARED}"
)
LETTERS = "abcdefgh"
SCRIPTS = sorted(
    path.stem
    for path in REPO.glob("*_*.py")
    if path.stem.split("_")[1] in ("offline", "online", "hybrid")
)


def call_apart(*command, cwd=REPO, code=0, **environment) -> subprocess.CompletedProcess:
    """Run `python COMMAND` as its own process and check its exit code. A traceback is a failure."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *map(str, command)]
    return checked(
        subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300), code
    )


def call(*command, code=0) -> subprocess.CompletedProcess:
    """The same in this process, which has imported torch already: the code runs as `__main__`."""
    command = [str(word) for word in command]
    module, words = (command[1], command[2:]) if command[0] == "-m" else (None, command[1:])
    script, stdout, stderr, before, end = (
        str(REPO / command[0]),
        io.StringIO(),
        io.StringIO(),
        sys.argv,
        None,
    )
    sys.argv = [module or script, *words]
    try:
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            contextlib.chdir(REPO),
            warnings.catch_warnings(
                action="ignore", category=RuntimeWarning
            ),  # that the tests have imported it before
        ):
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        end = error.code
    finally:
        sys.argv = before
        AcceleratorState._reset_state(reset_partial_state=True)  # as a new process has none
        while common.LOCKS:  # a process that ends lets go of them
            common.LOCKS.pop().release()
    message = (
        f"{end}\n" if isinstance(end, str) else ""
    )  # what Python does with one: it is printed, the code is 1
    returned = 1 if message else end or 0
    return checked(
        subprocess.CompletedProcess(
            command, returned, stdout.getvalue(), stderr.getvalue() + message
        ),
        code,
    )


def stage(function, *arguments, **changes) -> None:
    """A stage of prepare, with other arguments than its defaults."""
    args = prepare.Args(**changes)
    try:
        function(*(str(x) if isinstance(x, Path) else x for x in arguments), args)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def checked(done: subprocess.CompletedProcess, code: int) -> subprocess.CompletedProcess:
    assert done.returncode == code, (
        f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def letter_tokenizer(pad: str = "<pad>", letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token a letter; pad "<eos>" makes padding and end the same token."""
    names = dict.fromkeys([pad, "<eos>", *letters])
    tokenizer = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=pad)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": pad, "eos_token": "<eos>"} | (
        {"unk_token": pad} if pad != "<eos>" else {}
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    tokenizer.turn_end = tokenizer.eos_token_id
    tokenizer.ends = [tokenizer.turn_end]
    return tokenizer


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "gpt2": (GPT2LMHeadModel, GPT2Config),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig),
}


def tiny_model(
    family: str = "llama",
    seed: int = 0,
    scale: float = 1.0,
    vocab_size: int = 10,
    dtype=torch.float64,
):
    """A random model, two layers of width 16. A larger scale makes its distributions sharper."""
    torch.manual_seed(seed)
    model, config = FAMILIES[family]
    names = {"gpt2": ("n_embd", "n_layer", "n_head", "n_positions")}
    names = names.get(
        family,
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
    )
    sizes = dict(zip(names, (16, 2, 2, 64)))
    if family != "gpt2":
        sizes |= {"intermediate_size": 32, "num_key_value_heads": 2}
    model = model(
        config(vocab_size=vocab_size, bos_token_id=None, eos_token_id=1, pad_token_id=0, **sizes)
    ).eval()
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


MINIATURE = "--sft-steps 30 --golden-steps 20 --proxy-steps 20 --policy-steps 3 --eval-prompts 12"
MINIATURE = MINIATURE.split()


def made_once(tmp_path_factory, name, make):
    """A folder that is made once for all test processes: the first makes it, the others wait."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def setup(tmp_path_factory):
    """The reviews task in miniature, made by the command in the README."""
    command = ["-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out"]
    return made_once(tmp_path_factory, "reviews", lambda folder: call(*command, folder))


SHORT = (
    "--steps 3 --batch-size 4 --eval-every 2 --eval-at 2 --eval-prompts 8 --kl-prompts 4".split()
)


@pytest.fixture(scope="session")
def runs(setup, tmp_path_factory):
    """One short run of each script from the miniature start: {script: folder}."""

    def run(script):
        command = [f"{script}.py", "--setup", setup, *SHORT, "--out"]
        return made_once(tmp_path_factory, f"run_{script}", lambda folder: call(*command, folder))

    return {script: run(script) for script in SCRIPTS}
