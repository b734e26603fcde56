"""Supervised fine-tuning on both responses of every pair: the policy that all alignment runs start from and stay close to.

The paper trains one such model on chosen and rejected responses alike: it is to cover the data, not to be good
(Tang et al. 2024, Section 4). With --steps 0 the model is its own SFT and is copied as it is.
"""

import json
import math
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
import tyro
from tqdm import tqdm

from common import (
    batch_order,
    by_length,
    check_ranges,
    collate,
    fail,
    finished_folder,
    has_test,
    load_pairs,
    load_policy,
    pick_device,
    run_command,
)
from ipo_offline import pair_logprobs, sequence_logprob


@dataclass
class Args:
    model: str
    """a causal language model: folder or Hub name"""
    dataset: str
    """preference pairs: file, folder or Hub name; a split named test is not trained on, and its likelihood reported"""
    out: str
    """folder to write the model and its tokenizer to"""
    seed: int = 1
    """seed of the order of the data"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""
    steps: int = 500
    """gradient steps; 0 copies the model as it is (paper: 4,000)"""
    batch_size: int = 32
    """pairs a step, two texts each (paper: 128 texts)"""
    learning_rate: float = 3e-3
    """highest learning rate of AdamW, warmed up over 5 % of the steps, then falling as a cosine (paper: 3e-5)"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, the end token included (paper: 128)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program or is left out and counted"""


def nats_per_token(model, pairs: list[dict], tokenizer) -> float:
    """Mean negative log-probability of the tokens of both responses: too few steps show in it, and overfitting does."""
    tokens = sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in pairs)
    return -pair_logprobs(model, pairs, tokenizer, 64).sum().item() / tokens


def main(args: Args) -> None:
    check_ranges(args, zero=("seed", "steps"))
    device = pick_device(args.device)
    model, tokenizer = load_policy(args.model, device, args.max_prompt_tokens + args.max_response_tokens)
    limits = args.max_prompt_tokens, args.max_response_tokens, args.on_bad_row
    pairs = load_pairs(args.dataset, tokenizer, *limits)
    splits = {"train": pairs}
    if has_test(args.dataset):
        splits["test"] = load_pairs(args.dataset, tokenizer, *limits[:2], "skip", split="test")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.precision == "bf16")

    order = batch_order(len(pairs), args.batch_size, args.steps, args.seed).tolist()
    with finished_folder(args.out) as folder:
        bar = tqdm(order, desc="sft", unit="step")
        for step, indices in enumerate(bar):
            rows = [pairs[i] for i in indices]
            prompts = [row["prompt"] for row in rows] * 2
            responses = [row["chosen"] for row in rows] + [row["rejected"] for row in rows]
            count, loss = sum(map(len, responses)), 0.0
            optimizer.zero_grad()
            for part in by_length(prompts, responses, responses, 2):
                batch = collate([prompts[i] for i in part], [responses[i] for i in part], tokenizer, device)
                with autocast:
                    nll = -sequence_logprob(model, batch).sum() / count  # nats a token of the whole batch
                nll.backward()
                loss += nll.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not math.isfinite(loss) or not norm.isfinite():
                fail(f"sft: step {step}: the loss is {loss}, its gradient's norm {norm.item()}; lower the learning rate")
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=loss, refresh=False)
        nats = {split: nats_per_token(model, rows[:512], tokenizer) for split, rows in splits.items()}
        (folder / "nats_per_token.json").write_text(json.dumps(nats) + "\n")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{args.out}: " + ", ".join(f"{name} {value:.3f}" for name, value in nats.items()) + " nats a token of a response")


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
