"""Make a setup, the folder that every script begins from: the reviews task (built in), or your own model and preference data.

    python -m prepare --out setups/reviews                                      the reviews task (built in)
    python -m prepare --out setups/mine --model MODEL --dataset PAIRS ...       your own

The roles are those of Tang et al. 2024, Figure 2. From d_initial/, the pairs as their raters labelled them, come
sft/, the policy to start from; golden/, the preference model that from here on stands for the rater; d_golden/, the same
pairs with the golden preference model's labels; proxy/, the preference model that learns from those and labels for the online
scripts; and baseline/, online IPO with the golden preference model itself as the proxy, and its stored responses: the baseline
in every win rate. A stage that is there already is skipped, so an interrupted call is continued by repeating it.
"""

import io
import json
import random
import shutil
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

import ipo_online
from common import (
    changed_arguments,
    check_ranges,
    claim,
    decode,
    fail,
    finished_folder,
    flag_of,
    generator,
    load_pairs,
    load_policy,
    load_rows,
    load_tokenizer,
    pick_device,
    run_command,
    sample_in_parts,
)
from prepare import reviews, sft
from prepare.preference_model import Relabel, Train, relabel, train

READING = ("device", "max_prompt_tokens", "max_response_tokens", "on_bad_row")  # what every stage takes
TRAINING = (*READING, "precision", "batch_size")  # and every stage that trains
UNCHECKED = ("out", "device", "on_bad_row", "eval_batch_size")  # may be others when a setup that was begun is gone on with


@dataclass
class Args:
    out: str = "setups/reviews"
    """folder to make"""
    model: str | None = None
    """causal language model, folder or Hub name (default: the reviews task's, untrained)"""
    dataset: str | None = None
    """preference pairs, file, folder or Hub name (default: the reviews task's)"""
    golden_model: str | None = None
    """model that golden/ starts from; better larger than --model (default: as --model, or the reviews task's own)"""
    form: Literal["pointwise", "pairwise"] = "pointwise"
    """form of both preference models; pairwise, the paper's own, wants a pretrained model"""
    seed: int = 1
    """seed of the data, of every stage's order and of new weights; the golden preference model's differs from the proxy's"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens"""
    max_response_tokens: int = 33
    """longest response, in tokens, the end token included"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row of the data that cannot be used ends the program or is left out and counted"""

    pairs: int = reviews.Args.pairs
    """pairs in the reviews task, a tenth as many held out"""
    sft_steps: int = 500
    """gradient steps of supervised fine-tuning; 0 = the model is its own SFT"""
    sft_learning_rate: float = 3e-3
    """its highest learning rate"""
    golden_steps: int = 400
    """gradient steps of the golden preference model; 0 = --golden-model is one already"""
    proxy_steps: int = 500
    """gradient steps of the proxy preference model, which starts from sft/"""
    preference_learning_rate: float = 1e-3
    """highest learning rate of both preference models"""
    policy_steps: int = 200
    """gradient steps of the baseline policy, which win rates are against: where parity lies (paper: as the runs')"""
    policy_learning_rate: float = ipo_online.Args.learning_rate
    """its learning rate"""
    eval_prompts: int = 2048
    """training prompts that the baseline policy answers, and as many held-out ones, or what there is (paper: 2,048)"""
    eval_batch_size: int = ipo_online.Args.eval_batch_size
    """sequences that the baseline policy samples and scores at a time in evaluations"""
    batch_size: int = 32
    """pairs a step, in every stage"""


def split_by_prompt(args: Args) -> None:
    """Write d_initial/: the usable rows of --dataset, 5 % of the prompts (at most 1,000) in test.jsonl, never trained on."""
    rows = load_rows(args.dataset)
    if args.golden_model and any("chosen_ids" in row for row in rows):
        fail(f"{args.dataset}: has saved pairs of --model's token ids, which --golden-model need not share; give texts")
    limits = args.max_prompt_tokens, args.max_response_tokens, args.on_bad_row
    pairs = load_pairs(args.dataset, load_tokenizer(args.model), *limits)
    prompts = list(dict.fromkeys(pair["text"] for pair in pairs))
    random.Random(args.seed).shuffle(prompts)
    test = set(prompts[: min(1000, -(-len(prompts) // 20))])
    if len(prompts) < 2:
        fail(f"{args.dataset}: all usable rows have one prompt; at least two are needed, one of them to hold out")
    with finished_folder(f"{args.out}/d_initial") as folder:
        for split in ("train", "test"):
            lines = [json.dumps(rows[p["row"]], default=str) for p in pairs if (p["text"] in test) == (split == "test")]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def make_baseline(args: Args) -> None:
    """Write baseline/: online IPO with golden/ as its proxy, and its responses to training and held-out prompts."""
    out, folder = args.out, Path(args.out, "baseline.run")
    training = {name: getattr(args, name) for name in TRAINING}
    few = {"eval_every": max(1, args.policy_steps // 4), "eval_prompts": 64, "kl_prompts": 64}
    few |= {"eval_batch_size": args.eval_batch_size}
    rates = {"steps": args.policy_steps, "learning_rate": args.policy_learning_rate, "seed": args.seed}
    roles = {"model": f"{out}/sft", "dataset": f"{out}/d_golden", "proxy": f"{out}/golden", "golden": f"{out}/golden"}
    run = ipo_online.Args(setup=out, **roles, **rates, **few, **training, out=str(folder), resume=True)
    if changed_arguments(run, folder):  # the setup was moved, say, since this was begun
        shutil.rmtree(folder)
    if not (folder / "policy").exists():
        with redirect_stdout(io.StringIO()):  # what a run says of its folder is of no use: the folder goes
            ipo_online.main(run)

    device = pick_device(args.device)
    policy, tokenizer = load_policy(str(folder / "policy"), device, args.max_prompt_tokens + args.max_response_tokens)
    rows = []
    for split in ("train", "test"):
        limits = args.max_prompt_tokens, args.max_response_tokens, args.on_bad_row
        pairs = load_pairs(f"{args.out}/d_golden", tokenizer, *limits, split=split)
        prompts = list({pair["text"]: pair["prompt"] for pair in pairs}.items())
        random.Random(args.seed).shuffle(prompts)
        texts, prompts = zip(*prompts[: args.eval_prompts])
        drawing = (
            args.max_response_tokens,
            generator(args.seed, split, "golden policy"),
            tokenizer,
            args.eval_batch_size,
        )
        samples = decode(tokenizer, prompts, sample_in_parts(ipo_online.sample, policy, prompts, *drawing))
        for text, prompt, response, finished in zip(texts, prompts, *samples):
            row = {"split": split, "prompt": text, "messages": prompt.messages, "response": response, "finished": finished}
            rows.append(row)
    with finished_folder(f"{args.out}/baseline") as made:
        (made / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        policy.save_pretrained(made)
        tokenizer.save_pretrained(made)
    shutil.rmtree(folder)


def main(args: Args) -> None:
    check_ranges(args, zero=("seed", "sft_steps", "golden_steps", "proxy_steps"))
    if (args.model is None) != (args.dataset is None):
        fail("--model and --dataset go together: both, or neither for the reviews task")
    out, built_in = Path(args.out), args.model is None
    asked = {name: value for name, value in asdict(args).items() if name not in UNCHECKED}
    changed, trained = [], any((out / name).exists() for name in ("sft", "golden", "d_golden", "proxy", "baseline"))
    if (out / "prepare.json").exists():
        try:
            made = json.loads((out / "prepare.json").read_text())
        except ValueError as error:
            fail(f"{out}/prepare.json: cannot be read ({error}); choose another --out (finished stages can be copied there)")
        changed = [flag_of(name, made[name]) for name in asked if made.get(name, asked[name]) != asked[name]]
        if changed and trained:
            told = "repeat that, or choose another --out (finished stages can be copied there)"
            fail(f"{args.out} was begun with {' '.join(changed)}; {told}")
    if built_in:
        print(f"{args.out}: the reviews task, about two minutes on 2 cores")
    else:
        steps = args.sft_steps + args.golden_steps + args.proxy_steps + args.policy_steps
        print(f"{args.out}: {steps} gradient steps in four stages; each shows the time it has left")

    model = args.model or f"{out}/untrained"
    golden_model = args.golden_model or (f"{out}/untrained_golden" if built_in else args.model)
    d_initial, sft_model, golden, d_golden, proxy = (f"{out}/{x}" for x in ("d_initial", "sft", "golden", "d_golden", "proxy"))
    reading = {name: getattr(args, name) for name in READING}
    training = {name: getattr(args, name) for name in TRAINING}
    fitting = {"steps": args.sft_steps, "learning_rate": args.sft_learning_rate, **training}
    judging = {"form": args.form, "learning_rate": args.preference_learning_rate, **training}
    task = reviews.main, reviews.Args(args.out, args.seed, args.pairs)
    stages = {
        "d_initial": task if built_in else (split_by_prompt, args),
        "sft": (sft.main, sft.Args(model, d_initial, sft_model, args.seed, **fitting)),
        "golden": (train, Train(golden_model, d_initial, golden, seed=args.seed + 1000, steps=args.golden_steps, **judging)),
        "d_golden": (relabel, Relabel(golden, d_initial, d_golden, **reading)),
        "proxy": (train, Train(sft_model, d_golden, proxy, seed=args.seed, steps=args.proxy_steps, **judging)),
        "baseline": (make_baseline, args),
    }
    inside = {path.name for path in out.iterdir() if path.suffix != ".partial"} if out.is_dir() else set()
    if not (out / "prepare.json").exists() and inside - {*stages, "untrained", "untrained_golden", "untrained_small", ".lock"}:
        fail(f"--out {out}: there is something in this folder already, and it is no setup; name another")
    claim(out)
    if changed and (out / "d_initial").exists():  # what was wrong with an argument may show only once the data are there
        print(f"{args.out}: was begun with {' '.join(changed)}; nothing is trained yet, so it begins anew")
        shutil.rmtree(out / "d_initial.partial", ignore_errors=True)
        (out / "d_initial").rename(out / "d_initial.partial")  # at once: killed here, it has no data that look whole
        for name in ("untrained", "untrained_golden", "untrained_small"):  # of the reviews task
            shutil.rmtree(out / name, ignore_errors=True)
    for name, (function, argument) in stages.items():
        began, missing = time.time(), not (out / name).exists()
        if missing:
            if name != "baseline":
                shutil.rmtree(out / "baseline.run", ignore_errors=True)  # a half-made one was made from other models
            function(argument)
            (out / "prepare.json.partial").write_text(json.dumps(asked, indent=1) + "\n")
            (out / "prepare.json.partial").replace(out / "prepare.json")
        print(f"{out}/{name}: " + (f"made in {time.time() - began:.0f} s" if missing else "there already"))


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
