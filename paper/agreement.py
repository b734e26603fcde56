"""How far the judges agree: golden with the rater on held-out pairs, the proxy with golden on what policies sample.

A gap between online and offline means something only while the proxy is right about the texts that the online policy drifts
into. For each run's SFT and last policy, pairs are sampled at temperature 1 and judged by both; exact ties are left out and
counted. In the embedded world golden is compared with the rater's exact rule too.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from common import (
    check_ranges,
    decode,
    fail,
    generator,
    load_judge,
    load_pairs,
    load_policy,
    load_rows,
    margin,
    pick_device,
    sample_in_parts,
)
from ipo_online import sample
from paper.frontier import load_run
from prepare.reviews import taste


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of runs"""
    pairs: int = 1000
    """pairs to sample from each policy"""
    seed: int = 1
    """seed of the prompts and of the samples"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""


def share(first: torch.Tensor, second: torch.Tensor, counted: torch.Tensor) -> str:
    """How often two verdicts have the same sign among the counted pairs where neither is a tie."""
    untied = counted & (first != 0) & (second != 0)
    same = ((first > 0) == (second > 0))[untied].double()
    return f"{same.mean().item():.3f} of {len(same)} ({(counted & ~untied).sum().item()} ties)" if len(same) else "-"


def tastes(prompts: list[str], responses: list[str], finished: list[bool]) -> torch.Tensor:
    return torch.tensor([taste(*row) for row in zip(prompts, responses, finished)])


def main(args: Args) -> None:
    check_ranges(args, zero=("seed",))
    device = pick_device(args.device)
    table = Table(title="agreement of judges; rule: pairs a point or more apart", title_justify="left")
    for name in ("pairs from", "proxy with golden", "golden with the rule", "proxy with the rule"):
        table.add_column(name, no_wrap=True)
    policies = {}
    if not args.runs:
        fail("name the folders of runs to compare the judges on")
    for folder in args.runs:
        run, _ = load_run(folder)
        if run["start"] is None:
            fail(f"{folder}: was not made from a start, so there are no pairs to compare the judges on")
        if not Path(folder, "policy").exists():
            fail(f"{folder}: this run is not finished; its script goes on with it by --resume")
        judge = run.get("judge") or f"{run['start']}/proxy"
        policies[run["model"], judge] = run
        policies[str(Path(folder, "policy")), judge] = run
    for (source, judge), run in policies.items():
        lengths = run["max_prompt_tokens"], run["max_response_tokens"]
        policy, tokenizer = load_policy(source, device, sum(lengths))
        golden = load_judge(run["golden"], tokenizer, device, *lengths)
        proxy = load_judge(judge, tokenizer, device, *lengths)
        other = "" if judge == f"{run['start']}/proxy" else f", by {judge}"
        limits = *lengths, run["on_bad_row"]
        embedded = (Path(run["start"]) / "untrained_golden").exists()
        if source == run["model"]:
            rows = load_rows(str(Path(run["start"], "d_golden")), "test")
            held_out = load_pairs(str(Path(run["start"], "d_golden")), tokenizer, *limits, split="test")
            texts = [[p[name] for p in held_out] for name in ("prompt", "chosen", "rejected")]
            by_golden, by_proxy = margin(golden, *texts), margin(proxy, *texts)
            everything = torch.ones(len(held_out), dtype=torch.bool)
            cells = [f"{run['start']} held out{other}", share(by_proxy, by_golden, everything), "-", "-"]
            if embedded:
                by_rule = torch.tensor([rows[p["row"]]["chosen_taste"] - rows[p["row"]]["rejected_taste"] for p in held_out])
                cells[2:] = [share(verdict, by_rule, by_rule.abs() >= 1) for verdict in (by_golden, by_proxy)]
            table.add_row(*cells)
        pairs = load_pairs(str(Path(run["start"], "d_golden")), tokenizer, *limits)
        chosen_rows = random.Random(args.seed).choices(pairs, k=args.pairs)
        prompts, names = [p["prompt"] for p in chosen_rows], [p["text"] for p in chosen_rows]
        random_numbers = generator(args.seed, source, "agreement")
        responses = sample_in_parts(sample, policy, prompts * 2, run["max_response_tokens"], random_numbers, tokenizer, 64)
        first, second = responses[: args.pairs], responses[args.pairs :]
        by_golden, by_proxy = margin(golden, prompts, first, second), margin(proxy, prompts, first, second)
        everything = torch.ones(args.pairs, dtype=torch.bool)
        cells = [source + other, share(by_proxy, by_golden, everything), "-", "-"]
        if embedded:
            by_rule = tastes(names, *decode(tokenizer, prompts, first)) - tastes(names, *decode(tokenizer, prompts, second))
            cells[2:] = [share(verdict, by_rule, by_rule.abs() >= 1) for verdict in (by_golden, by_proxy)]
        table.add_row(*cells)
    Console(width=150, soft_wrap=True).print(table)
