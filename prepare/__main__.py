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

import filelock
import tyro
from accelerate import PartialState

import ipo_online
from common import (
    check_ranges,
    decode,
    fail,
    generator,
    load_pairs,
    load_policy,
    load_rows,
    load_tokenizer,
    run_command,
)
from prepare import reviews, sft, whole_folder, write_rows
from prepare.preference_model import Relabel, Train, relabel, train


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

    pairs: int = reviews.Args.pairs
    """pairs of the reviews task, and a tenth as many held out"""
    sft_steps: int = 500
    """gradient steps of supervised fine-tuning; 0: --model is its own SFT"""
    sft_learning_rate: float = 3e-3
    """its highest learning rate"""
    golden_steps: int = 400
    """gradient steps of the golden preference model; 0: --golden-model is one already"""
    proxy_steps: int = 500
    """gradient steps of the proxy preference model, which is trained from sft/"""
    preference_learning_rate: float = 1e-3
    """highest learning rate of both preference models"""
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


def make_baseline(args: Args, shared: dict) -> None:
    """Write baseline/: online IPO labelled by the golden preference model, and its responses to
    training prompts and held-out ones."""
    out, folder = args.out, Path(args.out, "baseline.run")
    golden, limits = f"{out}/golden", (args.max_prompt_tokens, args.max_response_tokens)
    roles = {"model": f"{out}/sft", "dataset": f"{out}/d_golden", "proxy": golden, "golden": golden}
    few = {"eval_every": max(1, args.policy_steps // 4), "eval_at": ()}
    few |= {"eval_prompts": 64, "kl_prompts": 64, "eval_batch_size": args.eval_batch_size}
    steps = {"steps": args.policy_steps, "learning_rate": args.policy_learning_rate}
    names = {"out": str(folder), "resume": True, "seed": args.seed}
    if not (folder / "policy").exists():
        with contextlib.redirect_stdout(io.StringIO()):  # the run is a means, and its folder goes
            ipo_online.main(ipo_online.Args(**roles, **few, **steps, **shared, **names))

    policy, tokenizer = load_policy(str(folder / "policy"), sum(limits))
    policy.to(PartialState().device)
    rows = []
    for split in ("train", "test"):
        pairs = load_pairs(f"{out}/d_golden", tokenizer, *limits, args.on_bad_row, split=split)
        prompts = list({pair["text"]: pair["prompt"] for pair in pairs}.items())
        random.Random(args.seed).shuffle(prompts)
        texts, prompts = zip(*prompts[: args.eval_prompts])
        noise = generator(args.seed, split, "golden policy")
        ids = ipo_online.sample_all(policy, prompts, noise, tokenizer.eos_token_id, args)
        for text, prompt, *answer in zip(texts, prompts, *decode(tokenizer, prompts, ids)):
            row = {"split": split, "prompt": text, "messages": prompt.messages}
            rows.append(row | dict(zip(("response", "finished"), answer)))
    with whole_folder(f"{out}/baseline") as made:
        write_rows(made / "responses.jsonl", rows)
        policy.save_pretrained(made)
        tokenizer.save_pretrained(made)
    shutil.rmtree(folder)


def check_begun(args: Args, asked: dict, names: list[str]) -> None:
    """End the program where --out is no setup, or was begun with other arguments."""
    out, record = Path(args.out), Path(args.out, "prepare.json")
    if not record.exists():
        known = {*names, "untrained", "untrained_golden", "untrained_small", ".lock"}
        inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if {name for name in inside if not name.endswith(".partial")} - known:
            fail(f"--out {out}: holds something that is no setup; name another folder")
        return
    try:
        made = json.loads(record.read_text())
    except ValueError as error:
        fail(f"{record}: cannot be read ({error}); name another --out")
    changed = [f"{name} was {made.get(name)}, is {asked[name]}" for name in asked]
    changed = [line for line, name in zip(changed, asked) if made.get(name) != asked[name]]
    if changed and any((out / name).exists() for name in names[1:]):
        fail(f"--out {out}: {'; '.join(changed)}; repeat those, or name another folder")
    if changed:  # what was wrong with an argument may show only once the data are there
        print(f"{out}: {'; '.join(changed)}; nothing is trained yet, so it begins again")
        record.unlink()
        for name in (names[0], "untrained", "untrained_golden", "untrained_small"):
            shutil.rmtree(out / name, ignore_errors=True)


def main(args: Args) -> None:
    check_ranges(args, zero=("seed", "sft_steps", "golden_steps", "proxy_steps"))
    if (args.model is None) != (args.dataset is None):
        fail("--model and --dataset go together: both, or neither for the reviews task")
    out, own = Path(args.out), args.model is not None
    steps = args.sft_steps + args.golden_steps + args.proxy_steps + args.policy_steps
    print(f"{out}: {steps} gradient steps in four stages; each shows the time it has left")
    model = args.model or f"{out}/untrained"
    golden_model = args.golden_model or args.model or f"{out}/untrained_golden"
    data, policy, golden = f"{out}/d_initial", f"{out}/sft", f"{out}/golden"
    relabelled, proxy = f"{out}/d_golden", f"{out}/proxy"

    limits = {"max_prompt_tokens": args.max_prompt_tokens}
    limits |= {"max_response_tokens": args.max_response_tokens, "on_bad_row": args.on_bad_row}
    shared = {**limits, "mixed_precision": args.mixed_precision, "batch_size": args.batch_size}
    fitted = {"steps": args.sft_steps, "learning_rate": args.sft_learning_rate, **shared}
    judging = {"form": args.form, "learning_rate": args.preference_learning_rate, **shared}
    golden_args = {"seed": args.seed + 1000, "steps": args.golden_steps, **judging}
    proxy_args = {"seed": args.seed, "steps": args.proxy_steps, **judging}
    task = reviews.Args(args.out, args.seed, args.pairs)
    stages = {
        "d_initial": lambda: split_by_prompt(args) if own else reviews.main(task),
        "sft": lambda: sft.main(sft.Args(model, data, policy, args.seed, **fitted)),
        "golden": lambda: train(Train(golden_model, data, golden, **golden_args)),
        "d_golden": lambda: relabel(Relabel(golden, data, relabelled, **limits)),
        "proxy": lambda: train(Train(policy, relabelled, proxy, **proxy_args)),
        "baseline": lambda: make_baseline(args, shared),
    }
    unchecked = ("out", "on_bad_row", "eval_batch_size")
    asked = {name: value for name, value in asdict(args).items() if name not in unchecked}
    check_begun(args, asked, list(stages))
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        fail(f"--out {out}: another process is writing here; wait, or name another folder")
    for name, make in stages.items():
        if (out / name).exists():
            print(f"{out}/{name}: there already")
            continue
        if name != "baseline":
            shutil.rmtree(out / "baseline.run", ignore_errors=True)  # it began with other models
        began = time.time()
        make()
        (out / "prepare.partial").write_text(json.dumps(asked, indent=1) + "\n")
        (out / "prepare.partial").replace(out / "prepare.json")
        print(f"{out}/{name}: made in {time.time() - began:.0f} s")
    lock.release()


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__, prog="python -m prepare"))
