"""Win rates of finished runs against another opponent: other stored responses to the same prompts, judged by the same golden.

    python -m paper.rejudge --runs RUN RUN --baseline OTHER_START/golden_policy --out FOLDER

A run keeps golden's margin of every answer over the opponent's. The margin over another opponent differs from it by golden's
margin between the two opponents, which is the same for all runs: nothing is sampled again. That holds for a pointwise judge.
Writes FOLDER/result.json: for each run and evaluation a digit per training prompt, 0 lost, 1 tie, 2 won, by golden and, in the
embedded world, by the rater's exact rule; and by a hash of its metrics which run it was.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from common import (
    check_ranges,
    encode,
    encode_prompts,
    fail,
    finished_folder,
    load_judge,
    load_tokenizer,
    margin,
    pick_device,
    run_command,
    wins,
)
from paper.frontier import json_lines, load_run, rule_wins, train_rows


@dataclass
class Args:
    runs: tuple[str, ...]
    """folders of runs from one start, judged by golden"""
    baseline: str
    """folder with the other opponent's stored responses (responses.jsonl, as in START/golden_policy)"""
    out: str
    """folder to write"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""


def answers(baseline: str) -> dict[str, dict]:
    """{prompt: the row with its stored response}."""
    path = Path(baseline, "responses.jsonl")
    if not path.is_file():
        fail(f"{path}: no such file; name the folder of a golden policy")
    return {row["prompt"]: row for row in json_lines(path)}


def digits(values: torch.Tensor | None) -> str | None:
    return None if values is None else "".join(f"{2 * value:.0f}" for value in values.tolist())


def main(args: Args) -> None:
    check_ranges(args, zero=())
    device, loaded = pick_device(args.device), [load_run(folder) for folder in args.runs]
    run = loaded[0][0]
    if len({(args["golden"], args["baseline"]) for args, _ in loaded}) > 1 or run["baseline"] is None:
        fail("these runs have not one golden judge and one golden policy, so that they cannot be compared with another")
    tokenizer = load_tokenizer(run["model"])
    golden = load_judge(run["golden"], tokenizer, device, run["max_prompt_tokens"], run["max_response_tokens"])
    if golden.form != "pointwise":
        fail(f"{run['golden']}: is pairwise; margins between responses add up for a pointwise judge alone")
    old, new = answers(run["baseline"]), answers(args.baseline)
    if unanswered := [prompt for prompt in old if prompt not in new]:
        fail(f"{args.baseline}: has no response to {unanswered[0]!r}, which the runs were asked")
    texts = list(old)
    both = [
        encode(tokenizer, texts, [each[x]["response"] for x in texts], [each[x]["finished"] for x in texts])[1]
        for each in (old, new)
    ]
    further = dict(zip(texts, margin(golden, encode_prompts(tokenizer, texts), *both).tolist()))
    results = []
    for folder, (told, evals) in zip(args.runs, loaded):
        verdicts = {"golden": [], "rule": []}
        for evaluation in evals:
            rows = train_rows(folder, evaluation["step"])
            margins = torch.tensor([row["win_rate_margin"] + further[row["prompt"]] for row in rows])
            # an answer that is the other opponent's to the letter: two differences that cancel, but for rounding
            verdicts["golden"].append(digits(wins(torch.where(margins.abs() < 1e-5, 0.0, margins))))
            verdicts["rule"].append(digits(rule_wins(told | {"baseline": args.baseline}, rows)))
        lines = Path(folder, "metrics.jsonl").read_bytes().splitlines()
        kept = {name: [said for said in values if said is not None] for name, values in verdicts.items()}
        results.append({"wins": kept, "metrics": hashlib.sha256(b"\n".join(lines)).hexdigest()})
    with finished_folder(args.out) as made:
        (made / "result.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
