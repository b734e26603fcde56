"""Preference models: train golden on human (or rater's) labels, let it relabel the data, train the proxy on those.

    python -m prepare.preference_model train --help      a causal language model's trunk with one score on its last token
    python -m prepare.preference_model relabel --help    the same prompts and responses, with a preference model's labels

Two forms (Tang et al. 2024, Appendix A). Pairwise, the paper's own: r(x, y1, y2) with both responses in the context, trained
in random order, asked in both. Pointwise: s(x, y), r(x, y1, y2) = sigmoid(s(x, y1) - s(x, y2)). Both are trained by
maximum likelihood. The form is saved in the model's config, where load_preference_model finds it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import transformers
import tyro
from tqdm import tqdm

from common import (
    PreferenceModel,
    batch_order,
    check_ranges,
    fail,
    finished_folder,
    generator,
    has_test,
    load_model,
    load_pairs,
    load_preference_model,
    load_rows,
    load_tokenizer,
    margin,
    pick_device,
    run_command,
    score,
    sequences_to_score,
    wins,
)


@dataclass
class Train:
    model: str
    """a causal language model, whose trunk is used, or a preference model to go on from: folder or Hub name"""
    dataset: str
    """preference pairs to train on: file, folder or Hub name; held out is its split test, else the last 5 % (at most 1,000)"""
    out: str
    """folder to write the model and its tokenizer to"""
    pairs: int | None = None
    """train on the first so many pairs (default: all that are not held out)"""
    form: Literal["pointwise", "pairwise"] = "pointwise"
    """pointwise: one score a response; pairwise: both responses in one context, in both orders (the paper's)"""
    seed: int = 1
    """seed of the order of the data and of the new score's weights"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""
    steps: int = 800
    """gradient steps; 0 takes a preference model, or any reward model with one label, as it is (paper: to a plateau)"""
    batch_size: int = 32
    """pairs a step (paper: 16 for the golden preference model, 32 for the proxy)"""
    learning_rate: float = 1e-3
    """highest learning rate of AdamW, warmed up over 10 % of the steps, then falling to 0 linearly (paper: 1e-4)"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, the end token included (paper: 128)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program or is left out and counted"""


@dataclass
class Relabel:
    golden: str
    """the preference model that gives the labels: folder or Hub name"""
    dataset: str
    """preference pairs: file, folder (train and test) or Hub name"""
    out: str
    """folder to write train.jsonl and test.jsonl to: prompt, chosen, rejected, finished flags, margin"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, the end token included (paper: 128)"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program or is left out and counted"""


def preference_nll(model, form: str, eos: int, prompts: list, chosen: list, rejected: list, coins: torch.Tensor):
    """(B,) -log-likelihood of the labels under a preference model.

    Pairwise: one order of the two responses, by the toss of a coin: -log r(x, y_w, y_l) or -log(1 - r(x, y_l, y_w)), Eq. 5
    of the paper. Pointwise: -log sigmoid(s(x, y_w) - s(x, y_l)), Bradley-Terry. coins: (B,) of 0 and 1.
    """
    first, second = sequences_to_score(form, eos, prompts, chosen, rejected)
    if form == "pointwise":
        sequences = first + second
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        size = -(-len(order) // 3)  # short, middling and long ones apart: a third less padding to compute
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        scores = torch.cat([score(model, [sequences[i] for i in part]) for part in parts])
        first, second = scores[torch.tensor(order).argsort()].chunk(2)
        return -torch.nn.functional.logsigmoid(first - second)
    logits = score(model, [b if coin else a for a, b, coin in zip(first, second, coins.tolist())])
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, 1 - coins.to(logits), reduction="none")


def agreement(preference_model: PreferenceModel, pairs: list[dict]) -> dict:
    """How often the preference model puts chosen first on pairs it was not trained on, a tie counting half."""
    prompts, chosen, rejected = ([p[name] for p in pairs] for name in ("prompt", "chosen", "rejected"))
    margins = margin(preference_model, prompts, chosen, rejected)
    return {"agreement": wins(margins).mean().item(), "ties": (margins == 0).double().mean().item(), "pairs": len(pairs)}


def train(args: Train) -> None:
    check_ranges(args, zero=("seed", "steps"))
    device, tokenizer = pick_device(args.device), load_tokenizer(args.model)
    transformers.set_seed(args.seed)  # the new score's weights
    kind, tokens = transformers.AutoModelForSequenceClassification, args.max_prompt_tokens + args.max_response_tokens
    tokens += (args.max_response_tokens + 2) * (args.form == "pairwise")
    model = load_model(kind, args.model, "preference model", device, tokens, new=args.steps > 0, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    if args.steps:
        model.config.preference_form = args.form
    limits = args.max_prompt_tokens, args.max_response_tokens, args.on_bad_row
    pairs = load_pairs(args.dataset, tokenizer, *limits)
    if has_test(args.dataset):
        test = load_pairs(args.dataset, tokenizer, *limits, split="test")
    else:
        held_out = min(1000, math.ceil(len(pairs) / 20))
        print(f"{args.dataset}: has no split named test, so its last {held_out} rows are held out")
        pairs, test = pairs[:-held_out], pairs[-held_out:]
        pairs = pairs or fail(f"{args.dataset}: one row is too few to train on")
    pairs = pairs[: args.pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.precision == "bf16")

    order = batch_order(len(pairs), args.batch_size, args.steps, args.seed).tolist()
    with finished_folder(args.out) as folder:
        bar = tqdm(order, desc=Path(args.out).name, unit="step")
        for step, indices in enumerate(bar):
            rows = [pairs[i] for i in indices]
            texts = ([row[name] for row in rows] for name in ("prompt", "chosen", "rejected"))
            coins = torch.randint(2, (len(rows),), generator=generator(args.seed, step, "coins"))
            with autocast:
                loss = preference_nll(model, args.form, tokenizer.eos_token_id, *texts, coins).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not loss.isfinite() or not norm.isfinite():
                where = f"{Path(args.out).name}: step {step}"
                fail(f"{where}: the loss is {loss.item()}, its gradient's norm {norm.item()}; lower the learning rate")
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=loss.item(), refresh=False)
        result = agreement(PreferenceModel(model, tokenizer, None), test)
        (folder / "agreement.json").write_text(json.dumps(result) + "\n")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{args.out}: puts chosen first in {result['agreement']:.1%} of {result['pairs']} held-out pairs")


def relabelled(row: dict, value: float) -> dict:
    """A row whose chosen response is the one that a margin (chosen minus rejected) prefers; a tie keeps the order.

    Every column whose name begins with chosen or rejected, the finished flags among them, goes with its response.
    """
    other = {"chosen": "rejected", "rejected": "chosen"}
    named = [(name.split("_"), text) for name, text in row.items()]
    if value < 0:
        row = {"_".join([other.get(first, first), *rest]): text for (first, *rest), text in named}
    return row | {"margin": abs(value)}


def relabel(args: Relabel) -> None:
    check_ranges(args, zero=())
    device, tokenizer = pick_device(args.device), load_tokenizer(args.golden)
    lengths = args.max_prompt_tokens, args.max_response_tokens
    preference_model, limits = load_preference_model(args.golden, tokenizer, device, *lengths), (*lengths, args.on_bad_row)
    with finished_folder(args.out) as folder:
        splits = ["train"] + ["test"] * has_test(args.dataset)
        for split in splits:
            rows, pairs = load_rows(args.dataset, split), load_pairs(args.dataset, tokenizer, *limits, split=split)
            values = []
            for i in tqdm(range(0, len(pairs), 1024), desc=f"relabel {split}", unit="kpair"):
                part = pairs[i : i + 1024]
                values += margin(
                    preference_model, *([p[name] for p in part] for name in ("prompt", "chosen", "rejected"))
                ).tolist()
            lines = (json.dumps(relabelled(rows[p["row"]], value), default=str) for p, value in zip(pairs, values))
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
            kept = wins(torch.tensor(values)).mean().item()
            print(f"{args.out}: {split}, {len(values)} pairs, label kept in {kept:.1%}, ties {values.count(0.0)}")


if __name__ == "__main__":
    args = tyro.cli(
        Annotated[Train, tyro.conf.subcommand("train")] | Annotated[Relabel, tyro.conf.subcommand("relabel")],
        description=__doc__,
    )
    run_command(train if isinstance(args, Train) else relabel, args)
