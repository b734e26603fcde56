"""Small models, a small setup, and a way to call the commands as a reader would."""

import contextlib
import functools
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import common
import prepare.__main__ as prepare

if "TANDEM_DEVICE" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is promised to the bit is promised on a CPU
REPO = Path(__file__).resolve().parent.parent
# real models and data, which are not part of the repository
SHARED = Path(os.environ.get("TANDEM_SHARED", REPO.parent / "shared"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no models and data at {SHARED}")
SIDES = "offline", "online", "hybrid"
SCRIPTS = sorted(path.stem for side in SIDES for path in REPO.glob(f"*_{side}.py"))


def call_apart(*command, cwd=REPO, code=0, **environment) -> subprocess.CompletedProcess:
    """Run `python COMMAND` as its own process and check its exit code. A traceback is a failure."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *map(str, command)]
    options = {"cwd": cwd, "env": env, "capture_output": True, "text": True, "timeout": 300}
    return checked(subprocess.run(command, **options), code)


def call(*command, code=0) -> subprocess.CompletedProcess:
    """The same in this process, which has imported torch already: the code runs as `__main__`."""
    name, *words = map(str, command)
    run = functools.partial(runpy.run_path, str(REPO / name))
    if name == "-m":
        name, *words = words
        run = functools.partial(runpy.run_module, name, alter_sys=True)
    stdout, stderr, end = io.StringIO(), io.StringIO(), 0
    try:
        with (
            patch.object(sys, "argv", [name, *words]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            contextlib.chdir(REPO),
            warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # imported before
        ):
            run(run_name="__main__")
    except SystemExit as error:
        end = error.code or 0
    finally:
        end_process()
    if isinstance(end, str):  # Python prints it, and the code is 1
        stderr.write(f"{end}\n")
        end = 1
    done = subprocess.CompletedProcess(command, end, stdout.getvalue(), stderr.getvalue())
    return checked(done, code)


def end_process() -> None:
    """What the end of a process does: it has no state any more, and lets go of its locks."""
    AcceleratorState._reset_state(reset_partial_state=True)
    while common.LOCKS:
        common.LOCKS.pop().release()


def stage(function, *arguments, **changes) -> None:
    """A stage of prepare, with other arguments than its defaults."""
    words = [str(word) if isinstance(word, Path) else word for word in arguments]
    try:
        function(*words, prepare.Args(**changes))
    finally:
        end_process()


def checked(done: subprocess.CompletedProcess, code: int) -> subprocess.CompletedProcess:
    told = f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == code and "Traceback" not in done.stderr, told
    return done


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def letter_tokenizer(pad: str = "<pad>", letters: str = "abcdefgh") -> PreTrainedTokenizerFast:
    """One token a letter; pad "<eos>" makes padding and end the same token."""
    words = {word: i for i, word in enumerate(dict.fromkeys([pad, "<eos>", *letters]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=pad))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": pad, "eos_token": "<eos>"}
    if pad != "<eos>":
        special["unk_token"] = pad
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    tokenizer.turn_end = tokenizer.eos_token_id
    tokenizer.ends = [tokenizer.turn_end]
    return tokenizer


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
IDS = {"vocab_size": 10, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def tiny_model(family="llama", seed=0, scale=1.0, dtype=torch.float64, **changes):
    """A random model, two layers of width 16. A larger scale makes its distributions sharper."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **IDS, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 * scale if parameter.dim() > 1 else 1)
    return model.to(dtype)


@pytest.fixture(params=["llama", "qwen2", "gpt2", "gpt_neox"])
def family(request):
    return request.param


MINIATURE = "--sft-steps 30 --golden-steps 20 --proxy-steps 20 --policy-steps 3 --eval-prompts 12"
MINIATURE = MINIATURE.split()
PREPARE = ["-m", "prepare", "--seed", 7, "--pairs", 400, *MINIATURE, "--out"]


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
    return made_once(tmp_path_factory, "reviews", lambda folder: call(*PREPARE, folder))


SHORT = "--steps 3 --batch-size 4 --eval-every 2 --eval-at 2 --eval-prompts 8 --kl-prompts 4"
SHORT = SHORT.split()


@pytest.fixture(scope="session")
def runs(setup, tmp_path_factory):
    """One short run of each script from the miniature setup: {script: folder}."""

    def run(script):
        command = [f"{script}.py", "--setup", setup, *SHORT, "--out"]
        return made_once(tmp_path_factory, f"run_{script}", lambda folder: call(*command, folder))

    return {script: run(script) for script in SCRIPTS}
