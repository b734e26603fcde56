"""Offline SLiC: learn from pairs that were collected and labelled beforehand (docs/slic.md).

Its sibling slic_online.py minimises the same loss in the same way, on pairs that the policy has just sampled.
Copy this file and common.py into a project of your own and change what you like: it is meant to be read, not imported.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from common import (
    Batch,
    batch_order,
    begin_run,
    by_length,
    check_args,
    choose_folder,
    clip_gradients,
    collate,
    decode,
    decoder_for,
    fail,
    finish_run,
    gather,
    generator,
    load_checkpoint,
    load_evaluation,
    load_pairs,
    load_policy,
    load_preference_model,
    margin,
    mean_stderr,
    open_log,
    pad,
    parameter_groups,
    pick_device,
    rank,
    recomputing,
    rows_left,
    run_command,
    sample_in_parts,
    save_checkpoint,
    save_policy,
    save_responses,
    setup_part,
    share,
    sum_gradients,
    summary,
    wins,
)

CHUNK = 1024  # so many tokens have logits over the whole vocabulary at a time


@dataclass
class Args:
    # ---- starting point
    setup: str | None = None
    """folder made by `python -m prepare` with all parts below (where none is named: setups/reviews, made if missing)"""
    model: str | None = None
    """the policy to start from, which stays the frozen reference: folder or Hub name (if not given: SETUP/sft)"""
    dataset: str | None = None
    """preference pairs: file, folder or Hub name (if not given: SETUP/d_golden)"""
    golden: str | None = None
    """the preference model that stands for the human rater in win rates (if not given: SETUP/golden)"""
    baseline: str | None = None
    """folder with the baseline policy's stored responses, which win rates are against (if not given: SETUP/baseline)"""
    on_bad_row: Literal["error", "skip"] = "error"
    """whether a row of the data that cannot be used ends the program or is left out and counted"""

    # ---- experiment
    out: str | None = None
    """folder of this run (if not given: runs/<setup>/<script>__<seed>__<time>)"""
    resume: bool = False
    """go on with the run in --out from its last checkpoint, kept at an evaluation"""
    seed: int = 1
    """seed of everything random: the order of the data and every sampled token"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ... (auto: cuda where there is one)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 trains, and samples to train on, under autocast; the weights, AdamW, log-softmax, all scores stay in fp32"""

    # ---- algorithm
    steps: int = 400
    """gradient steps (paper: 4,000)"""
    batch_size: int = 32
    """preference pairs a step (paper: 32)"""
    learning_rate: float = 5e-4
    """constant learning rate of AdamW, no weight decay; for the reviews task's 115k parameters (paper: 1e-5 for 770M)"""
    beta: float = 0.5
    """strength of the pull towards the reference: the log-ratio margin is pushed up to 1 / beta nats (paper: not run)"""
    max_grad_norm: float = 0.0
    """clip the gradient to this norm; 0 = off (paper: not stated)"""
    shuffle: Literal["all", "none"] | int = "all"
    """order of the pairs in each epoch: all (random), none (as in the data), or N (random within windows of N batches)"""
    gradient_accumulation_steps: int = 2
    """parts that --batch-size, the whole batch, is computed in, pairs of like length together: less memory, less padding"""
    gradient_checkpointing: Literal["off", "selective", "full"] = "off"
    """what a layer does not keep but computes again in the backward pass: all but products of matrices, or all; less memory"""
    compile: bool = False
    """compile the decoding step: a GPU samples faster, after a minute or so"""
    max_prompt_tokens: int = 16
    """longest prompt, in tokens; longer ones are bad rows, never cut (paper: 1,024)"""
    max_response_tokens: int = 33
    """longest response, in tokens, the end token included (paper: 128)"""

    # ---- evaluation and output
    eval_every: int = 40
    """gradient steps between evaluations (paper: not stated)"""
    eval_prompts: int = 512
    """prompts for the win rate, the same number again held out, and pairs for the accuracy (paper: 2,048)"""
    kl_prompts: int = 256
    """the first so many of those prompts serve for KL(policy || sft), one sample each (paper: 256)"""
    eval_batch_size: int = 256
    """sequences that an evaluation samples and scores at a time"""
    save_policies: bool = False
    """keep the policy of every evaluation in policies/<step>/, not only the last one in policy/"""
    wandb: bool = False
    """log to Weights & Biases too (needs `pip install wandb`)"""


def choose(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(N, 1) tokens at temperature 1: the inverse of the cumulative distribution of (N, V) logits at (N, 1) uniforms."""
    cdf = logits.float().softmax(-1).cumsum(-1)
    token = torch.searchsorted(cdf, uniforms * cdf[:, -1:], right=True)
    return token.clamp(max=cdf.shape[1] - 1)  # where rounding, or nan, leaves the uniform behind every token


@torch.no_grad()
def sample(model, prompts: list[list[int]], uniforms: torch.Tensor, tokenizer) -> list[list[int]]:
    """Sample one response to each prompt at temperature 1, from the whole vocabulary: the policy itself, nothing sharper.

    prompts: N lists of ids. uniforms: (N, T) in [0, 1), one for each token that may be sampled, so that a response does
    not depend on its batch mates. Returns N lists of at most T ids; one that ended by itself has the end token as its last.
    """
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    which = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=model.device)  # (N,) of D distinct prompts
    ids, mask = pad(list(row_of), tokenizer, model.device, "left")  # (D, P): a prompt is read once, though it is sampled twice
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # left padding does not count
    uniforms, eos = uniforms.to(model.device), tokenizer.eos_token_id
    out = model.base_model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    token = choose(model.get_output_embeddings()(out.last_hidden_state[which, -1]), uniforms[:, :1])  # (N, 1), the first
    cache, mask, positions = out.past_key_values, mask[which], positions[which, -1:]  # (N, P) and (N, 1) from here on

    if decoder := decoder_for(model, choose, uniforms.shape, ids.shape[1], cache):  # on a GPU: no Python between tokens
        tokens = decoder.write(cache, which, mask, uniforms, token, eos)
    else:  # a plain loop
        rows = torch.arange(len(which), device=model.device)  # those that go on
        tokens = torch.full(uniforms.shape, -1, device=model.device)  # (N, T), -1 where none was sampled
        tokens[:, :1] = token
        cache.batch_select_indices(which)
        for t in range(1, uniforms.shape[1]):
            going = rows_left(model, (tokens[rows] != eos).all(1))
            if not len(going):
                break
            if len(going) < len(rows):  # what has ended costs no more
                rows, token, mask, positions = rows[going], token[going], mask[going], positions[going]
                cache.batch_select_indices(going)
            mask, positions = torch.cat([mask, mask[:, -1:]], 1), positions + 1
            out = model(token, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            token = choose(out.logits[:, -1], uniforms[rows, t, None])
            tokens[rows, t] = token[:, 0]
    return [row[: row.index(eos) + 1] if eos in row else row for row in tokens.tolist()]


def response_states(model, batch: Batch) -> torch.Tensor:
    """(M, H) what the model knows before each of the batch's M response tokens, row after row.

    The padding is on the right, where causal attention never looks: no mask is needed, and attention stays fused.
    """
    return model.base_model(batch.ids, use_cache=False).last_hidden_state[:, :-1][batch.mask[:, 1:]]


def log_softmax(model, states: torch.Tensor) -> torch.Tensor:
    """(M, V) log-probabilities of every possible token, in fp32 or finer."""
    logits = model.get_output_embeddings()(states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def sum_by_row(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """(N,) the sum of each row's part of M values, one for each response token."""
    mask = batch.mask[:, 1:]
    return torch.zeros_like(mask, dtype=values.dtype).masked_scatter(mask, values).sum(1)


def sequence_logprob(model, batch: Batch) -> torch.Tensor:
    """(N,) log pi(y | x): the sum over the response's tokens, the end token included where it was generated.

    A vocabulary is wide: logits exist for `CHUNK` tokens at a time; those of more are computed again in the backward pass.
    """

    def logprob(states, tokens):
        return log_softmax(model, states).gather(-1, tokens[:, None]).squeeze(-1)

    chunks = list(zip(response_states(model, batch).split(CHUNK), batch.ids[:, 1:][batch.mask[:, 1:]].split(CHUNK)))
    parts = [checkpoint(logprob, *c, use_reentrant=False) if chunks[1:] else logprob(*c) for c in chunks]
    return sum_by_row(batch, torch.cat(parts))


def preference_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta: float) -> torch.Tensor:
    """(B,) SLiC: max(0, 1 - beta h), h being the chosen response's log-ratio minus the rejected one's.

    All arguments but beta: (B,) sequence log-probabilities. The hinge of Zhao et al. 2023 (arXiv 2305.10425) on log-ratios
    to the reference, as in Liu et al. 2023 (arXiv 2309.06657) and Tang et al. 2024b (arXiv 2402.05749): f(z) = max(0, 1 - z).
    """
    h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return (1 - beta * h).clamp(min=0)


@torch.no_grad()
def kl_to_sft(policy, sft, batch: Batch) -> torch.Tensor:
    """(N,) KL(policy || sft) along each response: exact over the vocabulary at every prefix, summed over its tokens.

    Averaged over responses that the policy sampled, this is the unbiased estimator of Tang et al. 2024, Appendix D.
    """
    terms = []
    for states in zip(response_states(policy, batch).split(CHUNK), response_states(sft, batch).split(CHUNK)):
        log_p, log_q = log_softmax(policy, states[0]), log_softmax(sft, states[1])
        # the last two sum to 0 and keep rounding from making a term negative
        terms.append((log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()).sum(-1))
    return sum_by_row(batch, torch.cat(terms))


@torch.no_grad()
def pair_logprobs(model, pairs: list[dict], tokenizer, width: int) -> torch.Tensor:
    """(N, 2) log pi(chosen | x) and log pi(rejected | x) of N pairs, `width` sequences at a time."""
    own, logprobs = share(len(pairs)), []
    for i in range(0, len(own), -(-width // 2)):
        part = [pairs[j] for j in own[i : i + -(-width // 2)]]
        both = [p["prompt"] for p in part] * 2, [p["chosen"] for p in part] + [p["rejected"] for p in part]
        logprobs += sequence_logprob(model, collate(*both, tokenizer, model.device)).view(2, -1).T.tolist()
    return torch.tensor(gather(logprobs, len(pairs)), dtype=torch.float64)


@torch.no_grad()
def evaluate(policy, reference, evaluation, golden, proxy, tokenizer, step: int, args: Args) -> tuple[dict, list[dict]]:
    """One row of evals.jsonl, and the responses behind it, for the policy as it is after `step` updates."""
    prompts, width = evaluation.prompts, args.eval_batch_size
    random = generator(args.seed, step, "evaluate")
    responses = sample_in_parts(sample, policy, prompts, args.max_response_tokens, random, tokenizer, width)

    kls, count = [], min(args.kl_prompts, evaluation.train_count)
    own = share(count)
    for part in (own[i : i + width] for i in range(0, len(own), width)):
        batch = collate([prompts[i] for i in part], [responses[i] for i in part], tokenizer, args.device)
        kls += kl_to_sft(policy, reference, batch).tolist()
    kl, kl_stderr = mean_stderr(torch.tensor(gather(kls, count)), evaluation.texts[:count])
    if not math.isfinite(kl):  # no checkpoint follows: the last one is good
        fail(f"step {step}: KL to the reference is {kl}; lower --learning-rate, or clip with --max-grad-norm 1")
    row, verdicts = {"step": step, "kl": kl, "kl_stderr": kl_stderr, "baseline": evaluation.baseline}, {}
    for name, preference_model in (("win_rate", golden), ("proxy_win_rate", proxy)):
        row |= {key: None for key in (name, f"{name}_stderr", f"{name}_heldout", f"{name}_heldout_stderr")}
        if preference_model is not None:
            own = share(len(prompts))
            texts = ([each[i] for i in own] for each in (prompts, responses, evaluation.baseline_responses))
            verdicts[name] = torch.tensor(gather(margin(preference_model, *texts, store_second=True).tolist(), len(prompts)))
            for key, part in ((name, slice(evaluation.train_count)), (f"{name}_heldout", slice(evaluation.train_count, None))):
                if prompts[part]:
                    row[key], row[f"{key}_stderr"] = mean_stderr(wins(verdicts[name][part]), evaluation.texts[part])

    row |= {"accuracy": None, "chosen_logratio": None, "rejected_logratio": None}
    if evaluation.pairs:
        ratios = pair_logprobs(policy, evaluation.pairs, tokenizer, width) - evaluation.reference_logprobs
        row["accuracy"] = wins(ratios[:, 0] - ratios[:, 1]).mean().item()
        row["chosen_logratio"], row["rejected_logratio"] = ratios.mean(0).tolist()

    words, finished = decode(tokenizer, prompts, responses)
    row["response_length"] = sum(map(len, responses)) / len(responses)
    row["finished"] = sum(finished) / len(responses)
    row["samples"] = [prompt + response for prompt, response in zip(evaluation.texts[:3], words)]
    splits = ["train"] * evaluation.train_count + ["test"] * (len(prompts) - evaluation.train_count)
    columns = {"split": splits, "prompt": evaluation.texts, "response": words, "finished": finished}
    columns |= {f"{name}_margin": values.tolist() for name, values in verdicts.items()}
    return row, [dict(zip(columns, values)) for values in zip(*columns.values())]


def main(args: Args) -> None:
    args.device = pick_device(args.device)
    check_args(args)
    out = choose_folder(args, Path(__file__).stem)

    limits = args.max_prompt_tokens, args.max_response_tokens
    policy, tokenizer = load_policy(args.model, args.device, sum(limits))
    reference, _ = load_policy(args.model, args.device, sum(limits))
    reference.requires_grad_(False)
    if args.compile:
        policy.compile(dynamic=False)  # what policy(...) does, which is a decoding step; all else goes through base_model
    golden = load_preference_model(args.golden, tokenizer, args.device, *limits)
    proxy = load_preference_model(setup_part(args, "proxy"), tokenizer, args.device, *limits)
    pairs = load_pairs(args.dataset, tokenizer, *limits, args.on_bad_row)
    evaluation = load_evaluation(args, tokenizer, pairs)
    evaluation.reference_logprobs = pair_logprobs(reference, evaluation.pairs, tokenizer, args.eval_batch_size)
    if evaluation.baseline == "sft" and (golden or proxy):
        asked = policy, evaluation.prompts, args.max_response_tokens, generator(args.seed, 0, "opponent"), tokenizer
        evaluation.baseline_responses = sample_in_parts(sample, *asked, args.eval_batch_size)  # the policy is still SFT
    order = batch_order(len(pairs), args.batch_size, args.steps, args.seed, args.shuffle).tolist()
    optimizer = torch.optim.AdamW(parameter_groups(policy), lr=args.learning_rate, weight_decay=0.0, fused=True)
    autocast = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16")

    begin_run(args, out, Path(__file__).stem)
    done = load_checkpoint(out, policy, optimizer)  # steps done before, 0 in a new run
    log = open_log(args, out, done)

    def evaluate_and_save(step):
        row, responses = evaluate(policy, reference, evaluation, golden, proxy, tokenizer, step, args)
        log("evals", row)
        tqdm.write(summary(row))
        save_responses(out, step, responses)
        if args.save_policies:
            save_policy(out / "policies" / str(step), policy, tokenizer)
        return {"kl": row["kl"], "win": row["win_rate"]}

    shown = {} if done else evaluate_and_save(0)
    bar = tqdm(order[done:], desc=Path(__file__).stem, unit="step", initial=done, total=args.steps, disable=rank() > 0)
    for step, indices in enumerate(bar, start=done):
        # ---- a batch of pairs: read it
        clock, own = [time.perf_counter()], [indices[i] for i in share(len(indices))]
        prompts = [pairs[i]["prompt"] for i in own]
        margins = [pairs[i]["margin"] for i in own]
        chosen = [pairs[i]["chosen"] for i in own]
        rejected = [pairs[i]["rejected"] for i in own]

        # ---- the gradient, a part of the batch at a time
        results = []
        for part in by_length(prompts, chosen, rejected, args.gradient_accumulation_steps):
            both = [prompts[i] for i in part] * 2, [chosen[i] for i in part] + [rejected[i] for i in part]
            batch = collate(*both, tokenizer, args.device)
            # log-probabilities of both responses, by the policy and by the frozen reference, from the same tensors
            with autocast:
                with recomputing(policy, args.gradient_checkpointing):
                    policy_chosen, policy_rejected = sequence_logprob(policy, batch).chunk(2)
                with torch.no_grad():
                    reference_chosen, reference_rejected = sequence_logprob(reference, batch).chunk(2)
            logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
            losses = preference_loss(*logprobs, args.beta)
            (losses.sum() / len(indices)).backward()
            results.append(torch.stack([losses, *logprobs]).detach())  # (5, b) of the part's b pairs
        sum_gradients(policy)  # of all processes, where there are several
        # (B,) each, in the order of the parts and not of the rows: only means are taken from them
        losses, *logprobs = torch.stack(gather(list(torch.cat(results, 1).T.cpu()), len(indices)), 1)
        policy_chosen, policy_rejected, reference_chosen, reference_rejected = logprobs
        loss = losses.mean()

        # ---- one step of AdamW
        grad_norm = clip_gradients(policy, args.max_grad_norm or float("inf"))
        if not (loss.isfinite() and grad_norm.isfinite()):
            where = f"step {step}, rows {[pairs[i]['row'] for i in indices]} of the data"
            what = f"the loss is {loss.item()}, its gradient's norm {grad_norm.item()}"
            fail(f"{where}: {what}; lower --learning-rate, or clip with --max-grad-norm 1")
        optimizer.step()
        optimizer.zero_grad()  # now, so that sampling and evaluating have its memory

        # ---- what happened; step 0 is the first batch, before any update
        rewards_chosen = args.beta * (policy_chosen - reference_chosen)
        rewards_rejected = args.beta * (policy_rejected - reference_rejected)
        metrics = {
            "step": step,
            "loss": loss.item(),
            "rewards/chosen": rewards_chosen.mean().item(),
            "rewards/rejected": rewards_rejected.mean().item(),
            "rewards/margins": (rewards_chosen - rewards_rejected).mean().item(),
            "rewards/accuracies": wins(rewards_chosen - rewards_rejected).mean().item(),
            "logps/chosen": policy_chosen.mean().item(),
            "logps/rejected": policy_rejected.mean().item(),
            "ties": sum(m == 0 for m in gather(margins, len(indices))) / len(indices),
            "learning_rate": args.learning_rate,
            "grad_norm": grad_norm.item(),
        }
        clock.append(time.perf_counter())
        log("metrics", metrics)
        seconds = {"time/sample": 0.0, "time/label": 0.0, "time/train": clock[1] - clock[0]}
        tokens = sum(gather(list(map(len, chosen + rejected)), 2 * len(indices)))
        speed = {"tokens_per_second": tokens / (clock[-1] - clock[0])}
        memory = torch.cuda.max_memory_allocated(args.device) if "cuda" in args.device else None
        log("timings", {"step": step, **seconds, **speed, "peak_memory_bytes": memory})
        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            shown = evaluate_and_save(step + 1)
            save_checkpoint(out, step + 1, policy, optimizer)
        bar.set_postfix({"loss": metrics["loss"], **shown}, refresh=False)

    finish_run(out, policy, tokenizer, log)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
