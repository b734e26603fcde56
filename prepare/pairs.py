"""Sample pairs from one or two policies and let a preference model label them: the data of the paper's Figures 5 and 12.

    python -m prepare.pairs --policies FINAL --proxy SETUP/golden --dataset SETUP/d_golden --out data/final-final
    python -m prepare.pairs --policies SETUP/sft EARLY --proxy SETUP/golden --dataset SETUP/d_golden --out data/sft-early

One policy writes both responses of every pair, of two each writes one. Prompts are those of the data set, row by row, so that
the result is as large and asks the same. It is kept as ids, in the form of saved online pairs: an offline script reads it
with --dataset and trains on the very tokens that were sampled, identical responses (ties) among them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common import (
    check_ranges,
    fail,
    finished_folder,
    generator,
    load_pairs,
    load_policy,
    load_preference_model,
    margin,
    pick_device,
    run_command,
    sample_in_parts,
    save_pairs,
)
from ipo_online import sample


@dataclass
class Args:
    policies: tuple[str, ...]
    """one policy for both responses or two, the first response's and the second's: folders or Hub names"""
    proxy: str
    """the preference model that labels the pairs: folder or Hub name"""
    dataset: str
    """prompts, or pairs, whose prompts alone are used: file, folder or Hub name"""
    out: str
    """folder to write online_pairs/train.jsonl into; `--dataset OUT/online_pairs` is what an offline script takes"""
    pairs: int | None = None
    """pairs to make (default: one for each row of the data; fewer are its first rows)"""
    seed: int = 1
    """seed of the sampled tokens"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""
    batch_size: int = 256
    """responses to sample at a time"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens"""
    max_response_tokens: int = 33
    """longest response, in tokens, the end token included"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row of the data that cannot be used ends the program or is left out and counted"""


def main(args: Args) -> None:
    check_ranges(args, zero=("seed",))
    if len(args.policies) not in (1, 2):
        fail(f"--policies: one or two, not {len(args.policies)}")
    device, limits = pick_device(args.device), (args.max_prompt_tokens, args.max_response_tokens)
    loaded = [load_policy(source, device, sum(limits)) for source in args.policies]
    tokenizer = loaded[0][1]
    if tokenizer.get_vocab() != loaded[-1][1].get_vocab():
        fail(f"{' and '.join(args.policies)}: have different vocabularies; a pair has one")
    if len(ends := {own.eos_token for _, own in loaded}) > 1:
        fail(f"{' and '.join(args.policies)}: have different end tokens, {' and '.join(sorted(ends))}; a pair has one")
    tokenizer.rows = max(other.rows for _, other in loaded)  # either may have more embeddings than tokens
    preference_model = load_preference_model(args.proxy, tokenizer, device, *limits)
    rows = load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row, prompts_alone=True)
    prompts = [row["prompt"] for row in rows][: args.pairs]
    with finished_folder(Path(args.out)) as folder:
        asked = prompts, limits[1]
        first, second = (
            sample_in_parts(sample, policy, *asked, generator(args.seed, side, "pairs"), tokenizer, args.batch_size)
            for side, (policy, _) in enumerate([loaded[0], loaded[-1]])
        )
        margins = margin(preference_model, prompts, first, second).tolist()
        chosen = [y1 if m >= 0 else y2 for y1, y2, m in zip(first, second, margins)]
        rejected = [y2 if m >= 0 else y1 for y1, y2, m in zip(first, second, margins)]
        save_pairs(folder, list(zip(prompts, chosen, rejected, margins)))
    wins = sum(m > 0 for m in margins) / len(margins)
    print(f"{args.out}: {len(margins)} pairs, the first response preferred in {wins:.1%}, ties {margins.count(0.0)}")


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
