"""Supervised fine-tuning on both responses of each pair: to cover the data, not to be good."""

import math

import torch
import transformers
from accelerate import Accelerator
from tqdm import tqdm

from common import batch_order, collate, fail, load_policy
from ipo_offline import sequence_logprob
from prepare import load_split, save_model


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


def train_sft(model: str, dataset: str, out: str, args) -> None:
    """Write `out`: the model after --sft-steps steps, which may be 0 (Tang et al. 2024, Section 4).

    AdamW with 5 % of the steps of warm-up and a cosine; the gradient is clipped at norm 1.
    """
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    model, tokenizer = load_policy(model, args.max_prompt_tokens + args.max_response_tokens)
    model.to(accelerator.device)
    pairs, test = (load_split(dataset, split, tokenizer, args) for split in ("train", "test"))
    steps, rate = args.sft_steps, args.sft_learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)

    order = batch_order(len(pairs), args.batch_size, steps, args.seed)
    for step, indices in enumerate(tqdm(order, desc="sft", unit="step")):
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
            fail(f"sft: step {step}: loss {loss}, gradient {norm}; lower --sft-learning-rate")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    nats = {"train": nats_per_token(model, pairs[:512]), "test": nats_per_token(model, test[:512])}
    if not all(map(math.isfinite, nats.values())):
        fail(f"sft: -log pi of a token is {nats['train']}; lower --sft-learning-rate")
    save_model(out, model, tokenizer, "nats_per_token.json", [nats])
    print(f"{out}: train {nats['train']:.3f}, test {nats['test']:.3f} nats a token of a response")
