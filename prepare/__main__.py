"""Make a setup, the folder that every script starts from: the reviews task, or your own data.

    python -m prepare --out setups/reviews                                the reviews task
    python -m prepare --out setups/mine --model MODEL --dataset PAIRS     your own

The roles (Tang et al. 2024, Figure 2): d_initial/, pairs with their first labels; sft/, the policy
that runs start from; golden/, the golden preference model, which stands for the human; d_golden/,
the same pairs with its labels; proxy/, the proxy preference model, which learns from those;
baseline/, the baseline policy (online IPO, labelled by golden/) and its responses, for win rates.
A stage that is there is skipped: repeat an interrupted call, and it continues.
"""

import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from accelerate import PartialState

import common
import ipo_online
from prepare import load_split, save_model, whole_folder, write_rows
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
    """model that golden/ is trained from, best a larger one (--model, or the reviews task's)"""
    baseline: str | None = None
    """baseline/ of another setup with the same --seed, to copy instead of making one"""
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
    mood: float = 1.0
    """the most praise that a writer of the reviews task has: moods are uniform from 0 to this"""
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
    """gradient steps of the baseline policy: more make win rates lower (paper: as the runs')"""
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
    rows, tokenizer = common.load_rows(args.dataset), common.load_tokenizer(args.model)
    if args.golden_model and any("chosen_ids" in row for row in rows):
        common.fail(f"{args.dataset}: has ids of --model, unknown to --golden-model; give texts")
    pairs = load_split(args.dataset, "train", tokenizer, args)
    prompts = list(dict.fromkeys(pair["text"] for pair in pairs))
    if len(prompts) < 2:
        common.fail(f"{args.dataset}: all usable rows have one prompt; one more is to be held out")
    random.Random(args.seed).shuffle(prompts)
    test = set(prompts[: min(1000, -(-len(prompts) // 20))])
    train = set(prompts) - test
    with whole_folder(f"{args.out}/d_initial") as folder:
        for split, some in (("train", train), ("test", test)):
            part = [rows[pair["row"]] for pair in pairs if pair["text"] in some]
            write_rows(folder / f"{split}.jsonl", part)


def make_baseline(args: Args) -> None:
    """Write baseline/: online IPO labelled by golden/, its responses to prompts of both splits."""
    out, run = args.out, Path(args.out, "baseline.run")
    names = "max_prompt_tokens max_response_tokens on_bad_row mixed_precision batch_size seed fast"
    options = {name: getattr(args, name) for name in names.split()}
    options |= {"setup": out, "proxy": f"{out}/golden", "out": str(run), "resume": True}
    options |= {"steps": args.policy_steps, "learning_rate": args.policy_learning_rate}
    options |= {"eval_every": max(1, args.policy_steps // 4), "eval_at": ()}
    options |= {"eval_prompts": 64, "kl_prompts": 64, "eval_batch_size": args.eval_batch_size}
    if not (run / "policy").exists():
        ipo_online.main(ipo_online.Args(**options))

    tokens = args.max_prompt_tokens + args.max_response_tokens
    policy, tokenizer = common.load_policy(str(run / "policy"), tokens)
    policy.to(PartialState().device)
    rows = []
    for split in ("train", "test"):
        pairs = load_split(f"{out}/d_golden", split, tokenizer, args)
        prompts = list({pair["text"]: pair["prompt"] for pair in pairs}.items())
        random.Random(args.seed).shuffle(prompts)
        texts, prompts = zip(*prompts[: args.eval_prompts])
        noise = common.generator(args.seed, split, "golden policy")
        ids = ipo_online.sample_all(policy, prompts, noise, tokenizer.ends, args)
        for text, prompt, *answer in zip(texts, prompts, *common.decode(tokenizer, prompts, ids)):
            row = {"split": split, "prompt": text, "messages": prompt.messages}
            rows.append(row | dict(zip(("response", "finished"), answer)))
    save_model(f"{out}/baseline", policy, tokenizer, "responses.jsonl", rows)
    shutil.rmtree(run)


def keep_baseline(args: Args) -> None:
    """Write baseline/: a copy of --baseline, whose held-out prompts must be held out here too."""
    tokenizer = common.load_tokenizer(args.baseline)
    rows = common.load_rows(f"{args.baseline}/responses.jsonl")
    held_out = {str(row.get("prompt")) for row in rows if row.get("split") == "test"}
    pairs = load_split(f"{args.out}/d_initial", "train", tokenizer, args)
    if not held_out.isdisjoint(pair["text"] for pair in pairs):
        common.fail(f"--baseline {args.baseline}: its held-out prompts are trained on; keep --seed")
    with whole_folder(f"{args.out}/baseline") as folder:
        shutil.copytree(args.baseline, folder, dirs_exist_ok=True)


def main(args: Args) -> None:
    common.check_ranges(args, zero=("seed", "sft_steps", "golden_steps"))
    if args.mood > 1:
        common.fail(f"--mood {args.mood}: must be at most 1")
    if (args.model is None) != (args.dataset is None):
        common.fail("--model and --dataset go together: both, or neither for the reviews task")
    if not args.golden_steps and args.golden_model is None:
        common.fail("--golden-steps 0: needs --golden-model, a preference model that is trained")
    for name in filter(None, (args.model, args.golden_model)):
        common.load_tokenizer(name)  # a wrong name ends here, before anything is written
    out, unchecked = Path(args.out), ("out", "on_bad_row", "eval_batch_size")
    asked = record = {name: value for name, value in asdict(args).items() if name not in unchecked}
    if (out / "prepare.json").exists():
        try:
            record = asdict(Args()) | json.loads((out / "prepare.json").read_text())
        except (ValueError, TypeError) as error:
            common.fail(f"{out}/prepare.json: cannot be read ({error}); name another folder")
    elif {path.name for path in out.glob("*")} - {".lock", "prepare.partial"}:
        common.fail(f"--out {out}: holds something that is no setup; name another folder")
    names = [name for name in asked if record[name] != asked[name]]
    if names:
        told = "; ".join(f"{name} was {record[name]}, is {asked[name]}" for name in names)
        common.fail(f"--out {out}: {told}: repeat its own, remove the folder, or name another one")
    common.claim(out)
    (out / "prepare.partial").write_text(json.dumps(asked, indent=1) + "\n")
    (out / "prepare.partial").replace(out / "prepare.json")

    def stage(name: str, make, *arguments) -> None:
        if (out / name).exists():
            print(f"{out}/{name}: there already")
            return
        if name != "baseline":
            shutil.rmtree(out / "baseline.run", ignore_errors=True)  # it began with other models
        make(*arguments, args)
        print(f"{out}/{name}: made")

    d_initial, d_golden = f"{out}/d_initial", f"{out}/d_golden"
    sft, golden, proxy = f"{out}/sft", f"{out}/golden", f"{out}/proxy"
    model = args.model or f"{out}/untrained"
    golden_model = args.golden_model or args.model or f"{out}/untrained_golden"
    train = train_preference_model
    stage("d_initial", split_by_prompt if args.dataset else make_reviews)
    if args.baseline:
        stage("baseline", keep_baseline)  # first: it may be refused
    stage("sft", train_sft, model, d_initial, sft)
    stage("golden", train, golden_model, d_initial, golden, args.golden_steps, args.seed + 1000)
    stage("d_golden", relabel, golden, d_initial, d_golden)
    stage("proxy", train, sft, d_golden, proxy, args.proxy_steps, args.seed)
    if not args.baseline:
        stage("baseline", make_baseline)


if __name__ == "__main__":
    config = {"prog": "python -m prepare", "config": (tyro.conf.DisallowNone,)}
    common.run_command(main, tyro.cli(Args, description=__doc__, **config))
