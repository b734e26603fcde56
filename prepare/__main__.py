"""Make a setup, the folder that every script starts from: the reviews task, or your own data.

    python -m prepare --out setups/reviews                                the reviews task
    python -m prepare --out setups/mine --model MODEL --dataset PAIRS     your own

The roles are those of Tang et al. 2024, Figure 2. d_initial/ has the pairs with their first
labels. From it come sft/, the policy that runs start from; golden/, the golden preference model,
which from here on stands for the human; d_golden/, the same pairs with its labels; proxy/, the
proxy preference model, which learns from those and labels for the online scripts; and baseline/,
the baseline policy (online IPO, labelled by golden/) with its responses, for win rates.
A stage that is there is skipped: repeat an interrupted call, and it continues.
"""

import contextlib
import io
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from accelerate import PartialState

import ipo_online
from common import (
    check_ranges,
    claim,
    decode,
    fail,
    generator,
    load_pairs,
    load_policy,
    load_rows,
    load_tokenizer,
    run_command,
)
from prepare import whole_folder, write_rows
from prepare.preference_model import relabel, train_preference_model
from prepare.reviews import make_reviews
from prepare.sft import train_sft


@dataclass
class Args:
    out: str = "setups/reviews"
    """folder to make"""
    model: str | None = None
    """causal language model, folder or Hub name (the reviews task's own, untrained)"""
    dataset: str | None = None
    """preference pairs, file, folder or Hub name (the reviews task's)"""
    golden_model: str | None = None
    """model that the golden preference model is trained from; better larger than --model (--model,
    or the reviews task's own)"""
    form: Literal["pointwise", "pairwise"] = "pointwise"
    """form of both preference models; pairwise, the paper's own, wants a pretrained model"""
    seed: int = 1
    """seed of the data, of every stage's order and of new weights"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 computes under autocast"""
    fast: bool = False
    """sample by fast.py, for a GPU"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens"""
    max_response_tokens: int = 33
    """longest response, in tokens, EOS included"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row that cannot be used ends the program, or is left out and counted"""

    pairs: int = 24_000
    """pairs of the reviews task, and a tenth as many held out"""
    sft_steps: int = 500
    """gradient steps of supervised fine-tuning; 0: --model is its own SFT (paper: 4,000)"""
    sft_learning_rate: float = 3e-3
    """its highest learning rate (paper: 3e-5)"""
    golden_steps: int = 400
    """gradient steps of the golden preference model; 0: --golden-model is one already"""
    proxy_steps: int = 500
    """gradient steps of the proxy preference model, which is trained from sft/"""
    preference_learning_rate: float = 1e-3
    """highest learning rate of both preference models (paper: 1e-4)"""
    policy_steps: int = 200
    """gradient steps of the baseline policy: they decide where parity is (paper: as the runs')"""
    policy_learning_rate: float = ipo_online.Args.learning_rate
    """its learning rate"""
    eval_prompts: int = 2048
    """prompts that the baseline policy answers, and as many held-out ones (paper: 2,048)"""
    eval_batch_size: int = 256
    """responses that the baseline policy samples at a time"""
    batch_size: int = 32
    """pairs a step, in every stage"""


def split_by_prompt(args: Args) -> None:
    """Write d_initial/: the usable rows of --dataset; 5 % of the prompts, at most 1,000, are in
    test.jsonl and never trained on."""
    rows, tokenizer = load_rows(args.dataset), load_tokenizer(args.model)
    if args.golden_model and any("chosen_ids" in row for row in rows):
        fail(f"{args.dataset}: has ids of --model, which --golden-model may not share; give texts")
    limits = args.max_prompt_tokens, args.max_response_tokens
    pairs = load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row)
    prompts = list(dict.fromkeys(pair["text"] for pair in pairs))
    if len(prompts) < 2:
        fail(f"{args.dataset}: all usable rows have one prompt; two are needed, one is held out")
    random.Random(args.seed).shuffle(prompts)
    test = set(prompts[: min(1000, -(-len(prompts) // 20))])
    with whole_folder(f"{args.out}/d_initial") as folder:
        for split in ("train", "test"):
            part = [pair for pair in pairs if (pair["text"] in test) == (split == "test")]
            write_rows(folder / f"{split}.jsonl", (rows[pair["row"]] for pair in part))


def make_baseline(args: Args) -> None:
    """Write baseline/: online IPO labelled by the golden preference model, and its responses to
    training prompts and held-out ones."""
    out, folder = args.out, Path(args.out, "baseline.run")
    golden, limits = f"{out}/golden", (args.max_prompt_tokens, args.max_response_tokens)
    names = "max_prompt_tokens max_response_tokens on_bad_row mixed_precision batch_size seed fast"
    shared = {name: getattr(args, name) for name in names.split()}
    roles = {"model": f"{out}/sft", "dataset": f"{out}/d_golden", "proxy": golden, "golden": golden}
    few = {"eval_every": max(1, args.policy_steps // 4), "eval_at": ()}
    few |= {"eval_prompts": 64, "kl_prompts": 64, "eval_batch_size": args.eval_batch_size}
    steps = {"steps": args.policy_steps, "learning_rate": args.policy_learning_rate}
    place = {"out": str(folder), "resume": True}
    if not (folder / "policy").exists():
        with contextlib.redirect_stdout(io.StringIO()):  # the run is a means, and its folder goes
            ipo_online.main(ipo_online.Args(**roles, **few, **steps, **shared, **place))

    policy, tokenizer = load_policy(str(folder / "policy"), sum(limits))
    policy.to(PartialState().device)
    rows = []
    for split in ("train", "test"):
        pairs = load_pairs(f"{out}/d_golden", tokenizer, *limits, args.on_bad_row, split=split)
        prompts = list({pair["text"]: pair["prompt"] for pair in pairs}.items())
        random.Random(args.seed).shuffle(prompts)
        texts, prompts = zip(*prompts[: args.eval_prompts])
        noise = generator(args.seed, split, "golden policy")
        ids = ipo_online.sample_all(policy, prompts, noise, tokenizer.ends, args)
        for text, prompt, *answer in zip(texts, prompts, *decode(tokenizer, prompts, ids)):
            row = {"split": split, "prompt": text, "messages": prompt.messages}
            rows.append(row | dict(zip(("response", "finished"), answer)))
    with whole_folder(f"{out}/baseline") as made:
        write_rows(made / "responses.jsonl", rows)
        policy.save_pretrained(made)
        tokenizer.save_pretrained(made)
    shutil.rmtree(folder)


def main(args: Args) -> None:
    check_ranges(args, zero=("seed", "sft_steps", "golden_steps", "proxy_steps"))
    if (args.model is None) != (args.dataset is None):
        fail("--model and --dataset go together: both, or neither for the reviews task")
    out, record, unchecked = Path(args.out), {}, ("out", "on_bad_row", "eval_batch_size")
    asked = {name: value for name, value in asdict(args).items() if name not in unchecked}
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if "prepare.json" in inside:
        try:
            record = json.loads((out / "prepare.json").read_text())
        except ValueError as error:
            fail(f"{out}/prepare.json: cannot be read ({error}); name another folder")
    elif inside - {".lock", "prepare.partial"}:
        fail(f"--out {out}: holds something that is no setup; name another folder")
    changed = [name for name in record if record[name] != asked.get(name)]
    if changed:
        told = "; ".join(f"{name} was {record[name]}, is {asked.get(name)}" for name in changed)
        fail(f"--out {out}: {told}: repeat its own, remove the folder, or name another one")
    claim(out)
    (out / "prepare.partial").write_text(json.dumps(asked, indent=1) + "\n")
    (out / "prepare.partial").replace(out / "prepare.json")
    steps = args.sft_steps + args.golden_steps + args.proxy_steps + args.policy_steps
    print(f"{out}: {steps} gradient steps in four stages; each shows the time it has left")

    def stage(name: str, make, *arguments) -> None:
        began = time.time()
        if (out / name).exists():
            print(f"{out}/{name}: there already")
            return
        if name != "baseline":
            shutil.rmtree(out / "baseline.run", ignore_errors=True)  # it began with other models
        make(*arguments)
        print(f"{out}/{name}: made in {time.time() - began:.0f} s")

    d_initial, d_golden = f"{out}/d_initial", f"{out}/d_golden"
    sft, golden, proxy = f"{out}/sft", f"{out}/golden", f"{out}/proxy"
    model = args.model or f"{out}/untrained"
    golden_model = args.golden_model or args.model or f"{out}/untrained_golden"
    golden_training = args.golden_steps, args.seed + 1000, args
    proxy_training = args.proxy_steps, args.seed, args
    if args.dataset:
        stage("d_initial", split_by_prompt, args)
    else:
        stage("d_initial", make_reviews, args.out, args.seed, args.pairs)
    stage("sft", train_sft, model, d_initial, sft, args)
    stage("golden", train_preference_model, golden_model, d_initial, golden, *golden_training)
    stage("d_golden", relabel, golden, d_initial, d_golden, args)
    stage("proxy", train_preference_model, sft, d_golden, proxy, *proxy_training)
    stage("baseline", make_baseline, args)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__, prog="python -m prepare"))
