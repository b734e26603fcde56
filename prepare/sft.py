"""Supervised fine-tuning on both responses of every pair: the policy that all runs start from.

The policy is to cover the data, not to be good, so chosen and rejected responses count alike
(Tang et al. 2024, Section 4). With --steps 0 the model is its own SFT, and is copied as it is.
"""

import json
import math
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
import tyro
from accelerate import Accelerator
from tqdm import tqdm

from common import batch_order, check_ranges, collate, fail, load_pairs, load_policy, run_command
from ipo_offline import sequence_logprob
from prepare import has_test, whole_folder


@dataclass
class Args:
    model: str
    """a causal language model: folder or Hub name"""
    dataset: str
    """preference pairs: file, folder or Hub name; a split named test is only measured"""
    out: str
    """folder to write the model and its tokenizer to"""
    seed: int = 1
    """seed of the order of the data"""
    steps: int = 500
    """gradient steps; 0 copies the model as it is (paper: 4,000)"""
    batch_size: int = 32
    """pairs a step, two texts each (paper: 128 texts)"""
    learning_rate: float = 3e-3
    """highest learning rate of AdamW: 5 % of the steps of warm-up, then a cosine (paper: 3e-5)"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, EOS included (paper: 128)"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 computes under autocast"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program, or is left out and counted"""


def negative_logprobs(model, pairs: list[dict]) -> tuple[torch.Tensor, int]:
    """(the sum of -log pi(y | x) over both responses of each pair, the number of their tokens)."""
    responses = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
    batch = collate([pair["prompt"] for pair in pairs] * 2, responses, model.device)
    return -sequence_logprob(model, *batch).sum(), sum(map(len, responses))


@torch.no_grad()
def nats_per_token(model, pairs: list[dict]) -> float:
    """The mean of -log pi over tokens: it shows too few steps, and too many."""
    parts = [negative_logprobs(model, pairs[i : i + 32]) for i in range(0, len(pairs), 32)]
    return sum(nll.item() for nll, _ in parts) / sum(tokens for _, tokens in parts)


def main(args: Args) -> None:
    check_ranges(args, zero=("seed", "steps"))
    limits = args.max_prompt_tokens, args.max_response_tokens
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    model, tokenizer = load_policy(args.model, sum(limits))
    model.to(accelerator.device)
    splits = {"train": load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row)}
    if has_test(args.dataset):
        splits["test"] = load_pairs(args.dataset, tokenizer, *limits, "skip", split="test")
    pairs, rate = splits["train"], args.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)

    order = batch_order(len(pairs), args.batch_size, args.steps, args.seed)
    with whole_folder(args.out) as folder:
        bar = tqdm(order, desc="sft", unit="step")
        for step, indices in enumerate(bar):
            rows = [pairs[i] for i in indices]
            rows.sort(key=lambda p: len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"])))
            half = -(-len(rows) // 2)  # short pairs apart from long ones: less padding
            tokens = sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in rows)
            loss = 0.0  # nats a token of the whole batch
            for part in (rows[:half], rows[half:]):
                with accelerator.autocast():
                    nll = negative_logprobs(model, part)[0] / tokens
                nll.backward()
                loss += nll.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            if not math.isfinite(loss + norm):
                told = f"the loss is {loss}, the gradient's norm {norm}"
                fail(f"sft: step {step}: {told}; lower the learning rate")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=loss, refresh=False)
        nats = {split: nats_per_token(model, rows[:512]) for split, rows in splits.items()}
        (folder / "nats_per_token.json").write_text(json.dumps(nats) + "\n")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    told = ", ".join(f"{split} {value:.3f}" for split, value in nats.items())
    print(f"{args.out}: {told} nats a token of a response")


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__, prog="python -m prepare.sft"))
