"""Preference models: train the golden one on the data's labels, relabel the data by it, train the
proxy on those labels.

    python -m prepare.preference_model train --help     a language model's trunk with a new score
    python -m prepare.preference_model relabel --help   the same pairs, labelled by a model

Two forms (Tang et al. 2024, Appendix A). Pairwise, the paper's own: r(x, y1, y2) with both
responses in the context, trained in random order, asked in both orders. Pointwise: s(x, y), with
r(x, y1, y2) = sigmoid(s(x, y1) - s(x, y2)). The form stands in the model's config.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import transformers
import tyro
from accelerate import Accelerator
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from tqdm import tqdm

from common import (
    PreferenceModel,
    batch_order,
    check_ranges,
    fail,
    generator,
    load_model,
    load_pairs,
    load_preference_model,
    load_rows,
    load_tokenizer,
    margin,
    run_command,
    score,
    sequences_to_compare,
    wins,
)
from prepare import has_test, whole_folder, write_rows


@dataclass
class Train:
    model: str
    """a causal language model, whose trunk is used, or a preference model: folder or Hub name"""
    dataset: str
    """preference pairs: file, folder or Hub name; held out is the split test, else the last 5 %
    (at most 1,000)"""
    out: str
    """folder to write the model and its tokenizer to"""
    pairs: int | None = None
    """train on the first so many pairs (all that are not held out)"""
    form: Literal["pointwise", "pairwise"] = "pointwise"
    """pointwise: one score a response; pairwise: both responses in one context (the paper's)"""
    seed: int = 1
    """seed of the order of the data and of the new score's weights"""
    steps: int = 800
    """gradient steps; 0 takes a preference model as it is (paper: until it no longer improves)"""
    batch_size: int = 32
    """pairs a step (paper: 16 for the golden preference model, 32 for the proxy)"""
    learning_rate: float = 1e-3
    """highest learning rate of AdamW: 10 % of the steps of warm-up, then linear (paper: 1e-4)"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, EOS included (paper: 128)"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 computes under autocast"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program, or is left out and counted"""


@dataclass
class Relabel:
    model: str
    """the preference model that gives the labels: folder or Hub name"""
    dataset: str
    """preference pairs: file, folder (train and test) or Hub name"""
    out: str
    """folder to write train.jsonl and test.jsonl to: the same rows, and the margin of each"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, EOS included (paper: 128)"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program, or is left out and counted"""


def preference_nll(model, pairwise: bool, eos: int, prompts, chosen, rejected, coins: torch.Tensor):
    """(B,) -log-likelihood of the labels under a preference model.

    Pairwise, one order of the responses by the toss of a coin: -log r(x, y_w, y_l) or
    -log(1 - r(x, y_l, y_w)), Eq. 5 of the paper. Pointwise: -log sigmoid(s(x, y_w) - s(x, y_l)).
    coins: (B,) of 0 and 1.
    """
    first, second = sequences_to_compare(pairwise, eos, prompts, chosen, rejected)
    if pairwise:
        asked = [b if coin else a for a, b, coin in zip(first, second, coins.tolist())]
        logits = score(model, asked)
        return binary_cross_entropy_with_logits(logits, 1 - coins.to(logits), reduction="none")
    sequences = first + second
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    third = -(-len(order) // 3)  # short, middling and long ones apart: a third less padding
    parts = [order[i : i + third] for i in range(0, len(order), third)]
    scores = torch.cat([score(model, [sequences[i] for i in part]) for part in parts])
    first, second = scores[torch.tensor(order).argsort()].chunk(2)
    return -logsigmoid(first - second)


def columns_of(pairs: list[dict]) -> list[list]:
    """Prompts, chosen and rejected responses."""
    return [[pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected")]


def train(args: Train) -> None:
    check_ranges(args, zero=("seed", "steps"))
    accelerator, pairwise = (
        Accelerator(mixed_precision=args.mixed_precision),
        args.form == "pairwise",
    )
    transformers.set_seed(args.seed)  # the new score's weights
    limits = args.max_prompt_tokens, args.max_response_tokens
    tokens = sum(limits)
    if pairwise:
        tokens += args.max_response_tokens + 2
    kind, new = transformers.AutoModelForSequenceClassification, args.steps > 0
    model, tokenizer = load_model(kind, args.model, "preference model", tokens, new_head=new)
    model.to(accelerator.device).config.pad_token_id = tokenizer.pad_token_id
    if args.steps:
        model.config.preference_form = args.form
    pairs = load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row)
    if has_test(args.dataset):
        test = load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row, split="test")
    else:
        held_out = min(1000, math.ceil(len(pairs) / 20))
        print(f"{args.dataset}: has no split named test; its last {held_out} rows are held out")
        pairs, test = pairs[:-held_out], pairs[-held_out:]
        pairs = pairs or fail(f"{args.dataset}: one row is too few to train on")
    pairs, rate, name = pairs[: args.pairs], args.learning_rate, Path(args.out).name
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)

    order = batch_order(len(pairs), args.batch_size, args.steps, args.seed)
    with whole_folder(args.out) as folder:
        bar = tqdm(order, desc=name, unit="step")
        for step, indices in enumerate(bar):
            texts = columns_of([pairs[i] for i in indices])
            coins = torch.randint(2, (len(indices),), generator=generator(args.seed, step, "coins"))
            with accelerator.autocast():
                eos = tokenizer.eos_token_id
                loss = preference_nll(model, pairwise, eos, *texts, coins).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not (loss.isfinite() and norm.isfinite()):
                told = f"the loss is {loss.item()}, the gradient's norm {norm.item()}"
                fail(f"{name}: step {step}: {told}; lower the learning rate")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=loss.item(), refresh=False)
        margins = margin(PreferenceModel(model, tokenizer, None, pairwise), *columns_of(test))
        result = {"agreement": wins(margins).mean().item(), "pairs": len(test)}
        result["ties"] = (margins == 0).double().mean().item()
        (folder / "agreement.json").write_text(json.dumps(result) + "\n")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{args.out}: agrees with {result['agreement']:.1%} of {len(test)} held-out labels")


def relabelled(row: dict, value: float) -> dict:
    """A row whose chosen response is the one that is preferred; value: the margin of its chosen.

    All columns whose names begin with chosen or rejected go with their response.
    """
    other = {"chosen": "rejected", "rejected": "chosen"}
    named = [(name.split("_"), text) for name, text in row.items()]
    if value < 0:
        row = {"_".join([other.get(first, first), *rest]): text for (first, *rest), text in named}
    return row | {"margin": abs(value)}


def relabel(args: Relabel) -> None:
    check_ranges(args)
    tokenizer, device = load_tokenizer(args.model), Accelerator().device
    limits = args.max_prompt_tokens, args.max_response_tokens
    model = load_preference_model(args.model, tokenizer, *limits, device)
    splits = ["train", "test"] if has_test(args.dataset) else ["train"]
    with whole_folder(args.out) as folder:
        for split in splits:
            rows = load_rows(args.dataset, split)
            pairs = load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row, split=split)
            values = []
            for i in tqdm(range(0, len(pairs), 1024), desc=f"relabel {split}", unit="kpair"):
                values += margin(model, *columns_of(pairs[i : i + 1024])).tolist()
            labelled = [relabelled(rows[pair["row"]], m) for pair, m in zip(pairs, values)]
            write_rows(folder / f"{split}.jsonl", labelled)
            kept = wins(torch.tensor(values)).mean().item()
            print(f"{args.out}: {split}, {len(values)} pairs, {kept:.1%} of the labels kept")


if __name__ == "__main__":
    commands = {"train": Train, "relabel": Relabel}
    parts = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items()]
    prog = "python -m prepare.preference_model"
    args = tyro.cli(parts[0] | parts[1], description=__doc__, prog=prog)
    run_command(train if isinstance(args, Train) else relabel, args)
