"""Preference models: train the golden one, relabel the data by it, train the proxy on its labels.

Two forms (Tang et al. 2024, Appendix A). Pairwise, the paper's own: r(x, y1, y2) with both
responses in the context, trained in random order, asked in both orders. Pointwise: s(x, y), with
r(x, y1, y2) = sigmoid(s(x, y1) - s(x, y2)). The form stands in the model's config.
"""

import torch
import transformers
from accelerate import Accelerator, PartialState
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from tqdm import tqdm

import common
from prepare import load_split, save_model, whole_folder, write_rows


def preference_nll(model, pairwise: bool, eos: int, prompts, chosen, rejected, coins: torch.Tensor):
    """(B,) -log-likelihood of the labels under a preference model. coins: (B,) of 0 and 1.

    Pairwise, one order of the responses by the toss of a coin: -log r(x, y_w, y_l) or
    -log(1 - r(x, y_l, y_w)), Eq. 5 of the paper. Pointwise: -log sigmoid(s(x, y_w) - s(x, y_l)).
    """
    first, second = common.sequences_to_compare(pairwise, eos, prompts, chosen, rejected)
    if pairwise:
        asked = [b if coin else a for a, b, coin in zip(first, second, coins.tolist())]
        logits = common.score(model, asked)
        return binary_cross_entropy_with_logits(logits, 1 - coins.to(logits), reduction="none")
    sequences = first + second
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    third = -(-len(order) // 3)  # short, middling and long ones apart: a third less padding
    parts = [order[i : i + third] for i in range(0, len(order), third)]
    scores = torch.cat([common.score(model, [sequences[i] for i in part]) for part in parts])
    first, second = scores[torch.tensor(order).argsort()].chunk(2)
    return -logsigmoid(first - second)


def columns_of(pairs: list[dict]) -> list[list]:
    """Prompts, chosen and rejected responses."""
    return [[pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected")]


def train_preference_model(model: str, dataset: str, out: str, steps: int, seed: int, args) -> None:
    """Write `out`: a language model's trunk, or a preference model, trained on pairs for `steps`
    steps. With 0 steps a preference model is copied as it is.

    AdamW with 10 % of the steps of warm-up, then linear to 0; the gradient is clipped at norm 1.
    agreement.json says how often it agrees with held-out labels, and prefers the longer response.
    """
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    transformers.set_seed(seed)  # the new score's weights
    tokens = args.max_prompt_tokens + args.max_response_tokens
    if args.form == "pairwise":
        tokens += args.max_response_tokens + 2
    kind, what = transformers.AutoModelForSequenceClassification, "preference model"
    model, tokenizer = common.load_model(kind, model, what, tokens, new_head=steps > 0)
    model.to(accelerator.device).config.pad_token_id = tokenizer.pad_token_id
    if steps:
        model.config.preference_form = args.form
    pairwise = getattr(model.config, "preference_form", None) == "pairwise"
    pairs, test = (load_split(dataset, split, tokenizer, args) for split in ("train", "test"))
    rate = args.preference_learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)

    order = common.batch_order(len(pairs), args.batch_size, steps, seed)
    for step, indices in enumerate(tqdm(order, desc=out, unit="step")):
        texts = columns_of([pairs[i] for i in indices])
        coins = torch.randint(2, (len(indices),), generator=common.generator(seed, step, "coins"))
        with accelerator.autocast():
            loss = preference_nll(model, pairwise, tokenizer.eos_token_id, *texts, coins).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not (loss.isfinite() and norm.isfinite()):
            told = "loss or gradient is no finite number; lower --preference-learning-rate"
            common.fail(f"{out}: step {step}: {told}")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    preference = common.PreferenceModel(model, tokenizer, None, pairwise)
    margins = common.margin(preference, *columns_of(test))
    result = {"agreement": common.wins(margins).mean().item(), "pairs": len(test)}
    result["ties"] = (margins == 0).double().mean().item()
    lengths = torch.tensor([len(pair["chosen"]) - len(pair["rejected"]) for pair in test])
    result["prefers_longer"] = common.wins(margins * lengths).mean().item()
    if pairwise:
        both = common.sequences_to_compare(True, tokenizer.eos_token_id, *columns_of(test))
        values = common.score_all(preference, sum(both, []))
        flips = [(values[tuple(a)] > 0.5) == (values[tuple(b)] > 0.5) for a, b in zip(*both)]
        result["flips_on_swap"] = sum(flips) / len(flips)  # by the order of the responses
    save_model(out, model, tokenizer, "agreement.json", [result])
    print(f"{out}: agrees with {result['agreement']:.1%} of {len(test)} held-out labels")


def relabelled(row: dict, value: float) -> dict:
    """A row whose chosen response is the preferred one; value: the margin of its chosen. Columns
    whose names begin with chosen or rejected go with their response."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    named = [(name.split("_"), text) for name, text in row.items()]
    if value < 0:
        row = {"_".join([other.get(first, first), *rest]): text for (first, *rest), text in named}
    return row | {"margin": abs(value)}


def relabel(source: str, dataset: str, out: str, args) -> None:
    """Write `out`: the same pairs with the labels of a preference model, and its margins."""
    tokenizer = common.load_tokenizer(source)
    limits = args.max_prompt_tokens, args.max_response_tokens
    model = common.load_preference_model(source, tokenizer, limits, PartialState().device)
    with whole_folder(out) as folder:
        for split in ("train", "test"):
            rows = common.load_rows(dataset, split)
            pairs = load_split(dataset, split, tokenizer, args)
            values = []
            for i in tqdm(range(0, len(pairs), 1024), desc=f"relabel {split}", unit="kpair"):
                values += common.margin(model, *columns_of(pairs[i : i + 1024])).tolist()
            labelled = [relabelled(rows[pair["row"]], m) for pair, m in zip(pairs, values)]
            write_rows(folder / f"{split}.jsonl", labelled)
