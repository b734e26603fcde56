"""Peak memory of one forward and backward pass: the scripts' sequence_logprob against naive logits.

    python benchmarks/memory.py --rows 8 --tokens 128 --vocabulary 49152

The naive form computes the logits of all positions. The scripts ask the model for those of the
responses alone, here half of each sequence (logits_to_keep). Each form has a process of its own.
Memory is what the pass adds to the weights: on a GPU what CUDA allocates, on a CPU, under Linux,
what the process occupies. The last line is JSON.
"""

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import PartialState
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where common.py is

from benchmarks.sampling import SMOLLM2_135M, machine  # noqa: E402
from common import check_ranges, fail, run_command  # noqa: E402
from ipo_online import sequence_logprob  # noqa: E402


@dataclass
class Args:
    rows: int = 8
    """sequences in the pass"""
    tokens: int = 128
    """tokens of a sequence, half of them response"""
    vocabulary: int = 49152
    """tokens that the model knows; all else has the shape of SmolLM2-135M"""
    layers: int = 30
    """layers of the model"""
    form: Literal["both", "naive", "scripts"] = "both"
    """measure one form, in this process"""


def naive_logprob(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The numbers of sequence_logprob, from the logits of all positions."""
    logprobs = model(ids, use_cache=False).logits[:, :-1].float().log_softmax(2)
    logprobs = logprobs.gather(2, ids[:, 1:, None]).squeeze(2)
    return (logprobs[:, -mask.shape[1] :] * mask).sum(1)


def peak() -> int:
    """Bytes, the most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak too
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def measure(args: Args) -> dict:
    """What one pass adds, and its sum of log-probabilities, the same in both forms."""
    torch.manual_seed(0)
    shape = SMOLLM2_135M | {"vocab_size": args.vocabulary, "num_hidden_layers": args.layers}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).to(PartialState().device)
    ids = torch.randint(args.vocabulary, (args.rows, args.tokens)).to(model.device)
    logprob, before = {"naive": naive_logprob, "scripts": sequence_logprob}[args.form], peak()
    value = logprob(model, ids, torch.ones_like(ids[:, args.tokens // 2 :])).sum()
    value.backward()
    return {"bytes": peak() - before, "value": value.item()}


def main(args: Args) -> None:
    check_ranges(args)
    if args.form != "both":
        return print(json.dumps(measure(args)))
    results = {}
    for form in ("naive", "scripts"):
        command = [sys.executable, __file__, *sys.argv[1:], "--form", form]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            fail(f"{form}: the pass has failed, see above")
        results[form] = json.loads(done.stdout.splitlines()[-1])
        print(f"{form}: {results[form]['bytes'] / 2**30:.2f} GiB")
    print(f"scripts / naive: {results['scripts']['bytes'] / results['naive']['bytes']:.2f}")
    print(json.dumps({"results": results, **machine(), "arguments": asdict(args)}))


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
