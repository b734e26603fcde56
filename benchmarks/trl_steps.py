"""TRL's side of benchmarks/steps.py: the same steps by OnlineDPOTrainer or DPOTrainer, in a process of their own.

benchmarks/steps.py calls it with its settings as JSON. It prints one line of JSON: the seconds of every step, as the trainer's
callbacks see its begin and its end, the tokens of its mean response where it samples, and the most memory that CUDA allocated,
where there is CUDA.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer


class Clock(TrainerCallback):
    """The seconds of every step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.seconds.append(time.perf_counter() - self.begin)


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(told: dict) -> None:
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model, reference = (
        AutoModelForCausalLM.from_pretrained(told["model"], dtype=torch.float32) for _ in range(2)
    )
    rows = Dataset.from_list([json.loads(line) for line in open(told["rows"])])
    clock, online, eos, tokens = Clock(), told["side"] == "online", tokenizer.eos_token_id, []

    def free_reward(prompts, completions, completion_ids, **kwargs):
        """A reward that costs nothing and orders the two samples of a prompt: the length of the text."""
        written = [ids.index(eos) + 1 if eos in ids else len(ids) for ids in completion_ids]
        tokens.append(sum(written) / len(written))
        return [float(len(text)) for text in completions]

    config, trainer = (OnlineDPOConfig, OnlineDPOTrainer) if online else (DPOConfig, DPOTrainer)
    own = {"max_new_tokens": told["max_response_tokens"], "temperature": 1.0} if online else {}
    own |= {"max_length": told["max_prompt_tokens"] + told["max_response_tokens"]}
    args = config(
        output_dir=told["out"],
        loss_type="ipo" if online else ["ipo"],
        beta=told["beta"],
        learning_rate=told["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=told["steps"],
        per_device_train_batch_size=told["batch_size"],
        gradient_checkpointing=False,
        bf16=told["precision"] == "bf16",
        use_cpu=told["device"] == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
    )
    reward = {"reward_funcs": free_reward} if online else {}
    rows = rows.select_columns(["prompt"] if online else ["prompt", "chosen", "rejected"])
    trainer(
        model,
        reference,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[clock],
        **reward,
    ).train()
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    print(json.dumps({"seconds": clock.seconds, "tokens": tokens, "memory": memory}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
