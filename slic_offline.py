"""Offline SLiC: learn from pairs that were collected and labelled beforehand.

The loss, what a run logs, what to expect: docs/slic.md. The sibling slic_online.py minimises the
same loss in the same way, on pairs that the policy has just sampled. Copy this file and common.py
into your own project and change what you like: it is meant to be read, not imported.
"""

import copy
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import DynamicCache

from common import (
    batch_order,
    begin_run,
    check_args,
    collate,
    fail,
    generator,
    in_shares,
    load_evaluation,
    load_pairs,
    load_policy,
    pad,
    run_command,
    summarize,
    summary,
)


@dataclass
class Args:
    # ---- what a run starts from
    setup: str | None = None
    """folder made by `python -m prepare`: it fills in what is missing of the next five arguments
    (setups/reviews, where neither --model nor --dataset is given)"""
    model: str | None = None
    """the SFT policy, which training starts from, and the frozen reference (a setup's sft/)"""
    dataset: str | None = None
    """preference pairs: file, folder or Hub name (a setup's d_golden/)"""
    proxy: str | None = None
    """the proxy preference model, or a reward model; for win rates (a setup's proxy/)"""
    golden: str | None = None
    """the golden preference model, which stands for the human (a setup's golden/)"""
    baseline: str | None = None
    """folder with responses of the baseline policy, for win rates (a setup's baseline/)"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row of the data that cannot be used ends the run, or is left out and counted"""

    # ---- the run
    out: str | None = None
    """folder of this run (if not given: runs/SETUP/SCRIPT__SEED)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint; where there is no run, begin one"""
    seed: int = 1
    """seed of the order of the data and of every sampled token"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: training, and sampling for it, run under autocast; all else stays in fp32"""

    # ---- the algorithm
    steps: int = 400
    """gradient steps (paper: 4,000)"""
    batch_size: int = 32
    """preference pairs a step, over all processes (paper: 32)"""
    learning_rate: float = 5e-4
    """constant rate of AdamW without weight decay, for 115k parameters (paper: 1e-5 for 770M)"""
    beta: float = 0.5
    """pull to the reference: the margin h of log-ratios is pushed up to 1 / beta nats"""
    max_grad_norm: float = 0.0
    """clip the gradient to this norm; 0: never (paper: not stated)"""
    shuffle: Literal["all", "none"] | int = "all"
    """order of the pairs in each epoch: all (random), none (as in the data), or N (random within
    windows of N batches)"""
    micro_batch_size: int = 16
    """pairs whose logits are in memory at a time, in each process: it changes rounding alone"""
    gradient_checkpointing: bool = False
    """compute each layer again in the backward pass: less memory, a third more time"""
    fast: bool = False
    """sample by fast.py: the same tokens but for rounding, faster on a GPU (CUDA graphs)"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens; a longer one is a bad row, never cut (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, EOS included (paper: 128)"""

    # ---- evaluation and output
    eval_every: int = 40
    """gradient steps between evaluations; each writes a checkpoint (paper: not stated)"""
    eval_at: tuple[int, ...] = (5, 10, 20)
    """further steps to evaluate at: a run moves fastest at its beginning"""
    eval_prompts: int = 512
    """how many training prompts, held-out prompts and pairs an evaluation uses (paper: 2,048)"""
    kl_prompts: int = 256
    """how many training prompts the KL to SFT is measured on, one sample each (paper: 256)"""
    eval_batch_size: int = 256
    """responses that an evaluation samples at a time"""
    save_policies: bool = False
    """keep the policy of every evaluation in policies/STEP/, not only the last one in policy/"""
    wandb: bool = False
    """log to Weights & Biases too (pip install wandb)"""


@torch.no_grad()
def sample(model, prompts: list[list[int]], uniforms: torch.Tensor, ends: list[int]):
    """One response, a list of at most T ids, to each prompt: temperature 1, no top-k or top-p.

    prompts: N lists of ids. uniforms: (N, T) numbers in [0, 1), one for each token, so that a
    response does not depend on the others. A response that ended has one of `ends` at its end.
    """
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, "left"))  # (N, P)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # padding does not count
    uniforms = uniforms.to(model.device)
    ends = torch.tensor(ends, device=model.device)
    tokens = torch.zeros_like(uniforms, dtype=torch.long)  # (N, T), read up to the first end
    rows = torch.arange(len(prompts), device=model.device)  # the n that have not ended
    cache = DynamicCache(config=model.config)
    for t in range(uniforms.shape[1]):
        inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits = model(ids, **inputs, logits_to_keep=1).logits[:, -1]  # (n, V)
        cdf = logits.float().softmax(1).cumsum(1)
        token = torch.searchsorted(cdf, uniforms[rows, t, None] * cdf[:, -1:], right=True)  # (n, 1)
        token = token.clamp(max=cdf.shape[1] - 1)  # rounding may put the uniform above all
        tokens[rows, t] = token[:, 0]
        going = (~torch.isin(token[:, 0], ends)).nonzero()[:, 0]
        if len(going) == 0:
            break
        if len(going) < len(rows):  # a response that has ended costs no more
            rows, token, mask, positions = (x[going] for x in (rows, token, mask, positions))
            cache.batch_select_indices(going)
        ids, positions = token, positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    lengths = 1 + (~torch.isin(tokens, ends)).cumprod(1).sum(1)  # T + 1 where there is no end
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist())]


def response_logprobs(model, ids: torch.Tensor, width: int) -> torch.Tensor:
    """(N, W, V) log-probabilities of every possible token at the last W columns of (N, L) ids.

    A column's logits predict the next one. Padding is on the right: causal attention never sees it.
    """
    logits = model(ids, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(2)


def sequence_logprob(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N,) log pi(y | x) of (N, L) ids: a sum over response and EOS, where the (N, W) mask is 1."""
    logprobs = response_logprobs(model, ids, mask.shape[1])
    tokens = ids[:, -mask.shape[1] :, None]  # (N, W, 1)
    return (logprobs.gather(2, tokens).squeeze(2) * mask).sum(1)


def preference_loss(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta: float
):
    """(B,) SLiC: max(0, 1 - beta h), h the chosen log-ratio minus the rejected one.

    The first four: (B,) sequence log-probabilities. The hinge of Zhao et al. 2023 (arXiv
    2305.10425) on log-ratios, as in Liu et al. 2023 (2309.06657), Tang et al. 2024b (2402.05749).
    """
    h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return (1 - beta * h).clamp(min=0)


@torch.no_grad()
def kl_to_sft(policy, sft, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N,) KL(policy || SFT) in nats: exact over the vocabulary at each prefix, summed over tokens.

    Its mean over responses that the policy sampled is an unbiased estimate of the KL of whole
    responses (Tang et al. 2024, Appendix D).
    """
    log_p = response_logprobs(policy, ids, mask.shape[1])
    log_q = response_logprobs(sft, ids, mask.shape[1])
    # p - q sums to 0 over the vocabulary; without it rounding could make a term negative
    terms = log_p.exp() * (log_p - log_q) - (log_p.exp() - log_q.exp())
    return (terms.sum(2) * mask).sum(1)


def sampler(args: Args):
    """`sample`, or with --fast that of fast.py, whose tokens are the same."""
    if not args.fast:
        return sample
    import fast  # only here: a script runs without that file

    return fast.sample


def sample_all(model, prompts: list, rng: torch.Generator, ends: list[int], args: Args) -> list:
    """One response to each of any number of prompts; `rng` draws the uniforms."""
    uniforms = torch.rand(len(prompts), args.max_response_tokens, generator=rng)

    def respond(rows):
        return sampler(args)(model, [prompts[i] for i in rows], uniforms[rows], ends)

    return in_shares(len(prompts), args.eval_batch_size, respond)


@torch.no_grad()
def pair_logprobs(model, pairs: list[dict], args: Args) -> torch.Tensor:
    """(K, 2) log-probabilities of the chosen and the rejected response of each of K pairs."""

    def both(rows):
        part = [pairs[i] for i in rows]
        responses = [pair["chosen"] for pair in part] + [pair["rejected"] for pair in part]
        batch = collate([pair["prompt"] for pair in part] * 2, responses, model.device)
        return sequence_logprob(model, *batch).view(2, -1).T.tolist()

    logprobs = in_shares(len(pairs), args.micro_batch_size, both)
    return torch.tensor(logprobs, dtype=torch.float64).view(-1, 2)


@torch.no_grad()
def evaluate(policy, reference, tokenizer, evaluation, step: int, args: Args):
    """(a row of evals.jsonl, the rows behind it: one a prompt) of the policy after `step` updates.

    The KL to SFT and the win rates against the baseline policy are those of fresh samples.
    """
    prompts, rng = evaluation.prompts, generator(args.seed, step, "evaluate")
    responses = sample_all(policy, prompts, rng, tokenizer.ends, args)

    def kls(rows):
        asked, answered = [prompts[i] for i in rows], [responses[i] for i in rows]
        return kl_to_sft(policy, reference, *collate(asked, answered, policy.device)).tolist()

    kl = in_shares(min(args.kl_prompts, evaluation.train_count), 2 * args.micro_batch_size, kls)
    logratios = pair_logprobs(policy, evaluation.pairs, args) - evaluation.reference_logprobs
    return summarize(evaluation, tokenizer, step, responses, kl, logratios, args.eval_batch_size)


def save_policy(folder: Path, model, tokenizer) -> None:
    """Write a folder that transformers loads. It gets its name only when it is complete."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def main(args: Args) -> None:
    # ---- arguments, models, data
    script = Path(__file__).stem
    check_args(args, script, required=("model", "dataset"))
    out, limits = Path(args.out), (args.max_prompt_tokens, args.max_response_tokens)
    trackers = ["tensorboard", "wandb"] if args.wandb else ["tensorboard"]
    precision = args.mixed_precision
    accelerator = Accelerator(mixed_precision=precision, log_with=trackers, project_dir=out)
    policy, tokenizer = load_policy(args.model, sum(limits))
    reference = copy.deepcopy(policy).requires_grad_(False).to(accelerator.device)  # never trained
    ends = tokenizer.ends
    pairs = load_pairs(args.dataset, tokenizer, limits, args.on_bad_row)
    order = batch_order(len(pairs), args.batch_size, args.steps, args.seed, args.shuffle)

    def respond(prompts):  # without --baseline the reference is the baseline policy
        return sample_all(reference, prompts, generator(args.seed, "baseline"), ends, args)

    evaluation = load_evaluation(args, tokenizer, pairs, respond, accelerator.device)
    evaluation.reference_logprobs = pair_logprobs(reference, evaluation.pairs, args)

    # ---- optimizer, trackers, and what the last checkpoint kept
    if args.gradient_checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    weights, rate = policy.parameters(), args.learning_rate
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    # the same weights without DDP and autocast: evaluation is in fp32, training asks for autocast
    model = accelerator.unwrap_model(policy, keep_fp32_wrapper=False)
    saved, run_id = begin_run(args, script, pairs)  # the step of the last checkpoint, or 0
    if saved:
        accelerator.load_state(out / "checkpoint" / str(saved))
    wandb = {"id": run_id, "name": args.out, "resume": "allow", "config": vars(args)}
    options = {"tensorboard": {"purge_step": saved}, "wandb": wandb}
    accelerator.init_trackers("tandem", init_kwargs=options)  # the project in W&B

    @accelerator.on_main_process
    def log(name: str, rows: list[dict], mode: str = "a") -> None:
        path = out / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with open(path, mode) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    share = args.batch_size // accelerator.num_processes  # rows of a batch for each process
    mine = slice(share * accelerator.process_index, share * (accelerator.process_index + 1))
    hidden = not accelerator.is_main_process
    bar = tqdm(desc=script, total=args.steps, initial=saved, disable=hidden)
    for step in range(saved, args.steps + 1):  # the last one only evaluates
        # ---- evaluate the policy as it is after `step` updates, and keep what a run continues from
        if step % args.eval_every == 0 or step in args.eval_at or step == args.steps:
            row, prompt_rows = evaluate(model, reference, tokenizer, evaluation, step, args)
            if not math.isfinite(row["kl"]):
                fail(f"step {step}: the KL to SFT is {row['kl']}; lower --learning-rate")
            log(f"responses/{step}", prompt_rows, "w")
            log("evals", [row])
            accelerator.log({f"evals/{name}": value for name, value in row.items()}, step)
            accelerator.on_main_process(bar.write)(summary(row))
            if args.save_policies and accelerator.is_main_process:
                save_policy(out / "policies" / str(step), model, tokenizer)
            if step > saved:
                folder = out / "checkpoint" / str(step)
                accelerator.save_state(f"{folder}.partial")
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    Path(f"{folder}.partial").rename(folder)
                    shutil.rmtree(folder.with_name(str(saved)), ignore_errors=True)
                saved = step
        if step == args.steps:
            break
        began = time.perf_counter()

        # ---- a batch of pairs: read it
        batch = [pairs[i] for i in order[step][mine]]
        prompts = [pair["prompt"] for pair in batch]
        margins = [pair["margin"] for pair in batch]
        chosen = [pair["chosen"] for pair in batch]
        rejected = [pair["rejected"] for pair in batch]

        # ---- the gradient, a micro-batch at a time, pairs of like length together
        policy.train()  # dropout is 0: this is for gradient checkpointing
        lengths = [len(x) + max(len(y), len(z)) for x, y, z in zip(prompts, chosen, rejected)]
        by_length = sorted(range(share), key=lengths.__getitem__)
        results = []
        for i in range(0, share, args.micro_batch_size):
            part = by_length[i : i + args.micro_batch_size]
            both = [chosen[j] for j in part] + [rejected[j] for j in part]
            inputs = collate([prompts[j] for j in part] * 2, both, accelerator.device)
            with accelerator.autocast():
                policy_chosen, policy_rejected = sequence_logprob(policy, *inputs).chunk(2)
            with accelerator.autocast(), torch.no_grad():
                reference_chosen, reference_rejected = sequence_logprob(reference, *inputs).chunk(2)
            logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
            losses = preference_loss(*logprobs, args.beta)
            accelerator.backward(losses.sum() / share)  # DDP takes the mean over processes
            results.append(torch.stack([losses, *logprobs], 1).detach())  # (b, 5)
        policy.eval()
        max_norm = args.max_grad_norm or math.inf  # inf: the norm is measured, nothing is clipped
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), max_norm).item()

        # ---- what happened, from all processes: the policy before the update
        results = accelerator.gather(torch.cat(results)).cpu().double()  # (B, 5)
        losses, policy_chosen, policy_rejected, reference_chosen, reference_rejected = results.T
        rewards_chosen = args.beta * (policy_chosen - reference_chosen)
        rewards_rejected = args.beta * (policy_rejected - reference_rejected)
        rewards = rewards_chosen - rewards_rejected
        ties = gather_object([m == 0 for m in margins])
        metrics = {
            "step": step,
            "loss": losses.mean().item(),
            "rewards/chosen": rewards_chosen.mean().item(),
            "rewards/rejected": rewards_rejected.mean().item(),
            "rewards/margins": rewards.mean().item(),
            "rewards/accuracies": ((rewards > 0).double() + 0.5 * (rewards == 0)).mean().item(),
            "logps/chosen": policy_chosen.mean().item(),
            "logps/rejected": policy_rejected.mean().item(),
            "ties": sum(ties) / len(ties),
            "learning_rate": args.learning_rate,
            "grad_norm": grad_norm,
        }
        if not (math.isfinite(metrics["loss"]) and math.isfinite(grad_norm)):
            told = f"the loss is {metrics['loss']}, the gradient's norm {grad_norm}"
            fail(f"step {step}: {told}; lower --learning-rate, or try --max-grad-norm 1")

        # ---- the update
        optimizer.step()
        optimizer.zero_grad()
        log("metrics", [metrics])
        accelerator.log({f"metrics/{name}": value for name, value in metrics.items()}, step)
        seconds = time.perf_counter() - began
        memory = torch.cuda.max_memory_allocated()  # so far; 0 on a CPU
        log("timings", [{"step": step, "seconds": seconds, "peak_memory_bytes": memory}])
        bar.set_postfix(loss=metrics["loss"], refresh=False)
        bar.update()

    # ---- policy/ says that the run is finished
    bar.close()
    if accelerator.is_main_process:
        save_policy(out / "policy", model, tokenizer)
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
        print(f"wrote {out}")
    policy, optimizer = accelerator.free_memory(policy, optimizer)  # DDP first, or gloo may hang
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__, config=(tyro.conf.DisallowNone,)))
