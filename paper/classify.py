"""How well preference models and policies tell the better response, along the pairs of an online run (Figure 6).

    python -m paper.classify --run RUN --policies RUN/policy OTHER/policy --out FOLDER

Near each of ten evenly spaced moments of the run, 64 of the pairs that it trained on are judged by golden, whose verdict
counts as the truth. Compared are the run's own labels, the proxy's, and the policies as classifiers: h > 0, their log-ratios
to SFT. Writes FOLDER/result.json. A pair that golden finds equal is left out; any other tie counts half.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from common import (
    check_ranges,
    fail,
    finished_folder,
    load_judge,
    load_pairs,
    load_policy,
    margin,
    pick_device,
    run_command,
    wins,
)
from ipo_online import pair_logprobs
from paper.frontier import load_run

WIDTH = 128  # sequences that a policy scores at a time


@dataclass
class Args:
    run: str
    """folder of an online run with its stream (--save-stream)"""
    policies: tuple[str, ...]
    """folders of policies that are to classify its pairs"""
    out: str
    """folder to write"""
    moments: int = 10
    """evenly spaced moments of the run"""
    pairs: int = 64
    """pairs at each of them, fewer where the run trained on fewer"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""


def main(args: Args) -> None:
    check_ranges(args, zero=())
    device, (run, _) = pick_device(args.device), load_run(args.run)
    if not Path(args.run, "stream").is_dir():
        fail(f"{args.run}: has no stream/; make the run with --save-stream")
    limits = run["max_prompt_tokens"], run["max_response_tokens"]
    reference, tokenizer = load_policy(run["model"], device, sum(limits))
    golden = load_judge(run["golden"], tokenizer, device, *limits)
    stream = load_pairs(str(Path(args.run, "stream")), tokenizer, *limits, "error")
    count = min(args.pairs, len(stream) // args.moments)
    if not count:
        fail(f"{args.run}: its stream has {len(stream)} pairs, too few for {args.moments} moments")
    ends = [len(stream) * (i + 1) // args.moments for i in range(args.moments)]
    pairs = [pair for end in ends for pair in stream[end - count : end]]
    texts = ([p[name] for p in pairs] for name in ("prompt", "chosen", "rejected"))
    truth = margin(golden, *texts).double()
    # the proxy put chosen first, or had no preference
    verdicts = {"proxy": torch.tensor([float(p["margin"] != 0 and p["chosen"] != p["rejected"]) for p in pairs])}
    before = pair_logprobs(reference, pairs, tokenizer, WIDTH)
    for source in args.policies:
        policy, _ = load_policy(source, device, sum(limits))
        ratios = pair_logprobs(policy, pairs, tokenizer, WIDTH) - before
        verdicts[source] = ratios[:, 0] - ratios[:, 1]  # h of the pair
    counted = (truth != 0).double().view(args.moments, -1)
    right = {name: (wins(values * truth.sign()).view(args.moments, -1) * counted).sum(1) for name, values in verdicts.items()}
    if not counted.any(1).all():
        fail(f"{args.run}: golden has no preference in any of a moment's {count} pairs; more --pairs may help")
    accuracy = {name: (values / counted.sum(1)).tolist() for name, values in right.items()}
    with finished_folder(args.out) as folder:
        row = {"pairs": ends, "counted": counted.sum(1).tolist(), "accuracy": accuracy}
        (folder / "result.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
