"""What experiments need beside runs and setups; each stage writes the folder --out.

python -m paper.stages pairs --policies FINAL SFT --golden GOLDEN --dataset PAIRS --out FOLDER
"""

import copy
import json
import tempfile
from pathlib import Path

import torch
import tyro

import common
from common import generator, load_pairs, load_policy, load_rows, margin, run_command, wins
from ipo_online import Args as RunArgs
from ipo_online import pair_logprobs, sample_all
from prepare import whole_folder, write_rows
from prepare.__main__ import Args as PrepareArgs
from prepare.preference_model import columns_of, train_preference_model
from prepare.sft import train_sft

RUN = RunArgs()
LIMITS = RUN.max_prompt_tokens, RUN.max_response_tokens


def sft(model: str, dataset: str, seed: int, out: str) -> None:
    """SFT of an untrained model of another size on the data of a setup."""
    train_sft(model, dataset, out, PrepareArgs(seed=seed))


def proxy(setup: str, pairs: int, seed: int, out: str) -> None:
    """A proxy preference model that has seen the first `pairs` pairs alone, for as many steps."""
    args = PrepareArgs(seed=seed)
    with tempfile.TemporaryDirectory() as fewer:
        for split, count in (("train", pairs), ("test", None)):
            rows = load_rows(f"{setup}/d_golden", split)[:count]
            write_rows(Path(fewer, f"{split}.jsonl"), rows)
        train_preference_model(f"{setup}/sft", fewer, out, args.proxy_steps, seed, args)


def pairs(policies: tuple[str, str], golden: str, dataset: str, count: int, seed: int, out: str):
    """Pairs of one response of either policy to each prompt of the data, labelled by `golden`, as
    ids in the form of an online run's."""
    (one, tokenizer), (other, _) = (load_policy(policy, sum(LIMITS)) for policy in policies)
    model = common.load_preference_model(golden, tokenizer, LIMITS, "cpu")
    prompts = [row["prompt"] for row in load_pairs(dataset, tokenizer, LIMITS, "error")[:count]]
    noise = [generator(seed, side, "pairs") for side in (0, 1)]
    first = sample_all(one, prompts, noise[0], tokenizer.ends, RUN)
    second = sample_all(other, prompts, noise[1], tokenizer.ends, RUN)
    margins = margin(model, prompts, first, second).tolist()
    rows = []
    for x, y1, y2, m in zip(prompts, first, second, margins):
        chosen, rejected = (y1, y2) if m >= 0 else (y2, y1)
        row = {"prompt_ids": x, "chosen_ids": chosen, "rejected_ids": rejected, "margin": abs(m)}
        rows.append(row)
    with whole_folder(out) as folder:
        write_rows(folder / "train.jsonl", rows)


def classify(pairs: str, setup: str, policies: tuple[str, ...], out: str) -> None:
    """How often the golden preference model agrees with the proxy, and with policies by the sign of
    h, on the last 64 pairs before each of ten moments of an online run (Figure 6)."""
    reference, tokenizer = load_policy(f"{setup}/sft", sum(LIMITS))
    golden = common.load_preference_model(f"{setup}/golden", tokenizer, LIMITS, "cpu")
    rows, moments, count = load_pairs(pairs, tokenizer, LIMITS, "error"), 10, 64
    ends = [len(rows) * (i + 1) // moments for i in range(moments)]
    asked = [row for end in ends for row in rows[end - count : end]]
    truth = margin(golden, *columns_of(asked)).sign()  # 1: as the proxy, which labelled the pair
    verdicts = {"proxy": torch.tensor([float(row["margin"] > 0) for row in asked])}
    before = pair_logprobs(reference, asked, RUN)
    for name, policy in zip(("online policy", "offline policy"), policies):
        ratios = pair_logprobs(load_policy(policy, sum(LIMITS))[0], asked, RUN) - before
        verdicts[name] = ratios[:, 0] - ratios[:, 1]
    counted = (truth != 0).view(moments, -1)  # the golden model's ties have no right answer
    accuracy = {}
    for name, verdict in verdicts.items():
        right = wins(verdict * truth).view(moments, -1) * counted
        accuracy[name] = (right.sum(1) / counted.sum(1)).tolist()
    with whole_folder(out) as folder:
        row = {"pairs": ends, "counted": counted.sum(1).tolist(), "accuracy": accuracy}
        Path(folder, "result.json").write_text(json.dumps(row) + "\n")


def deeper(model: str, times: int, out: str) -> None:
    """A Llama of `times` as many layers that computes the same, and can learn more: behind each
    layer come copies of it that add 0 at first."""
    policy, tokenizer = load_policy(model, 1)
    layers = [copy.deepcopy(layer) for layer in policy.model.layers for _ in range(times)]
    for i, layer in enumerate(layers):
        if i % times:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
    policy.model.layers = torch.nn.ModuleList(layers)
    policy.config.num_hidden_layers = len(layers)
    with whole_folder(out) as folder:
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


STAGES = {stage.__name__: stage for stage in (sft, proxy, pairs, classify, deeper)}

if __name__ == "__main__":
    run_command(lambda _: tyro.extras.subcommand_cli_from_dict(STAGES), None)
