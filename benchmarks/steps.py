"""Whole training steps against those of TRL's trainers, as ratios.

    pip install "trl==1.16.0"
    python benchmarks/steps.py                    # the reviews task
    python benchmarks/steps.py --random --mixed-precision bf16 --max-prompt-tokens 128 \
        --max-response-tokens 128                 # on a GPU: SmolLM2-135M's shape, random words

ipo_online.py against OnlineDPOTrainer, ipo_offline.py against DPOTrainer, with the IPO loss and the
same policy, proxy, pairs, lengths and batch. Each run is a process of its own; the sides take
turns. The learning rate is so small that no policy moves: each would learn to write another length.
Memory is what CUDA allocates. The last line is JSON.
"""

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import transformers
import tyro
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent.parent))  # where common.py is

from benchmarks.sampling import SMOLLM2_135M, machine, seconds_now  # noqa: E402
from common import check_ranges, fail, load_rows, load_tokenizer, run_command  # noqa: E402

KINDS = {"sft": AutoModelForCausalLM, "proxy": AutoModelForSequenceClassification}
OWN = {"setup", "random", "skip", "rounds", "fast"}  # arguments that are no values of the scripts


@dataclass
class Args:
    setup: str = "setups/reviews"
    """folder made by `python -m prepare`"""
    random: bool = False
    """instead of a setup: random weights in the shape of SmolLM2-135M, and random words"""
    skip: int = 5
    """first steps of each run, which are not counted"""
    rounds: int = 3
    """runs of each side"""
    fast: bool = False
    """--fast, of the scripts"""
    steps: int = 40
    """steps of each run"""
    batch_size: int = 32
    """pairs a step"""
    micro_batch_size: int = 16
    """of the scripts; TRL takes the batch at once"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """of both sides"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens"""
    max_response_tokens: int = 33
    """longest response, in tokens"""


def random_setup(folder: Path, args: Args) -> None:
    """sft, proxy and d_golden of words of one token each; every other prompt is half as long."""
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, SMOLLM2_135M["vocab_size"]))]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {"tokenizer_object": tokenizer, "pad_token": "<pad>", "eos_token": "<eos>"}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "num_labels": 1}
    config = transformers.LlamaConfig(**SMOLLM2_135M, **special)
    for name, kind in KINDS.items():
        kind.from_config(config).save_pretrained(folder / name)
        transformers.PreTrainedTokenizerFast(**options).save_pretrained(folder / name)
    (folder / "d_golden").mkdir()
    with open(folder / "d_golden" / "train.jsonl", "w") as file:
        for i in range(args.batch_size * args.steps):
            response = args.max_response_tokens - 1  # and EOS
            lengths = {"prompt": args.max_prompt_tokens // (1 + i % 2)}
            lengths |= {"chosen": response, "rejected": response}
            row = {name: random.choices(words[2:], k=n) for name, n in lengths.items()}
            file.write(json.dumps({name: " " + " ".join(row[name]) for name in row}) + "\n")


def run(args: Args, setup: str, side: str, online: bool, out: str) -> tuple[list[float], int]:
    """(seconds of each step, peak bytes) of a run, in a process of its own."""
    command = [str(HERE), json.dumps({**vars(args), "setup": setup, "online": online, "out": out})]
    if side == "scripts":
        flags = {name: value for name, value in vars(args).items() if name not in OWN}
        flags |= {"model": f"{setup}/sft", "dataset": f"{setup}/d_golden", "out": out}
        flags |= {"learning_rate": 1e-12, "proxy": f"{setup}/proxy"}
        flags |= {"eval_every": args.steps, "eval_at": args.steps, "eval_prompts": 8}
        command = [str(HERE.parent.parent / f"ipo_{'online' if online else 'offline'}.py")]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        command += ["--fast"] * args.fast
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        fail(f"{command[0]}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    rows = load_rows(f"{out}/timings.jsonl")
    return [row["seconds"] for row in rows], max(row["peak_memory_bytes"] for row in rows)


class Clock(transformers.TrainerCallback):
    """Writes timings.jsonl, as the scripts do."""

    def on_step_begin(self, *args, **kwargs):
        self.began = seconds_now()

    def on_step_end(self, args, *others, **kwargs):
        row = {"seconds": seconds_now() - self.began}
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        with open(Path(args.output_dir, "timings.jsonl"), "a") as file:
            file.write(json.dumps(row) + "\n")


def train_with_trl(setup: str, online: bool, out: str, **told) -> None:
    """What the process of TRL's side does."""
    import trl
    from trl.experimental import online_dpo

    def load(name):
        return KINDS[name].from_pretrained(f"{setup}/{name}", dtype=torch.float32)

    config, trainer, names = trl.DPOConfig, trl.DPOTrainer, ("prompt", "chosen", "rejected")
    length = told["max_prompt_tokens"] + told["max_response_tokens"]
    options = {"loss_type": "ipo", "beta": 0.1, "learning_rate": 1e-12, "max_length": length}
    options |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": told["steps"]}
    options |= {"per_device_train_batch_size": told["batch_size"], "gradient_checkpointing": False}
    options |= {"bf16": told["mixed_precision"] == "bf16", "use_cpu": not torch.cuda.is_available()}
    options |= {"logging_strategy": "no", "save_strategy": "no", "report_to": "none"}
    parts = {"processing_class": load_tokenizer(f"{setup}/sft"), "callbacks": [Clock()]}
    if online:
        config, trainer, names = online_dpo.OnlineDPOConfig, online_dpo.OnlineDPOTrainer, ["prompt"]
        options |= {"max_new_tokens": told["max_response_tokens"], "temperature": 1.0}
        parts["reward_funcs"] = load("proxy")
        parts["reward_processing_classes"] = load_tokenizer(f"{setup}/proxy")
    rows = load_rows(f"{setup}/d_golden")[: told["batch_size"] * told["steps"]]
    rows = Dataset.from_list([{name: row[name] for name in names} for row in rows])
    Path(out).mkdir()
    args = config(output_dir=out, disable_tqdm=True, **options)
    trainer(load("sft"), load("sft"), args=args, train_dataset=rows, **parts).train()


def main(args: Args) -> None:
    check_ranges(args, zero=("skip",))
    if not importlib.util.find_spec("trl"):
        fail('this benchmark needs TRL: pip install "trl==1.16.0"')
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = folder if args.random else args.setup
        if args.random:
            random_setup(Path(folder), args)
        elif not Path(setup, "d_golden").is_dir():
            fail(f"--setup {setup}: no such setup; `python -m prepare --out {setup}` makes it")
        for name in ("online", "offline"):
            seconds, memory = ({"scripts": [], "trl": []} for _ in range(2))
            for turn in range(2 * args.rounds):
                side = ("scripts", "trl")[turn % 2]
                steps, peak = run(args, setup, side, name == "online", f"{folder}/{name}-{turn}")
                seconds[side].append(median(steps[args.skip :]))
                memory[side].append(peak)
            for side, values in seconds.items():
                told = f"{median(values):.4f} s ({min(values):.4f} to {max(values):.4f})"
                peak = max(memory[side]) / 2**30
                print(f"{name}, {side}: {told}" + (f", {peak:.2f} GiB" if peak else ""))
            ratio = median(b / a for a, b in zip(seconds["scripts"], seconds["trl"]))
            print(f"{name}: {ratio:.2f} times as fast as TRL", flush=True)
            results[name] = {"seconds": seconds, "memory": memory, "ratio": ratio}
    print(json.dumps({"results": results, **machine(), "arguments": asdict(args)}))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):
        train_with_trl(**json.loads(sys.argv[1]))
    else:
        run_command(main, tyro.cli(Args, description=__doc__))
