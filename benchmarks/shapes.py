"""Models in the shape of published ones, with random weights: what a benchmark needs where no such model can be had."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)


def config_of(shape: str):
    """The config of "smollm2-135m" or "pythia-410m"."""
    if shape == "pythia-410m":
        sizes = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        return GPTNeoXConfig(vocab_size=50304, rotary_pct=0.25, **sizes)
    sizes = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    return LlamaConfig(vocab_size=49152, intermediate_size=1536, tie_word_embeddings=True, **sizes)


def make_setup(
    folder: str, shape: str, rows: int, prompt_tokens: int, response_tokens: int
) -> None:
    """A folder in the form of `python -m prepare`'s: sft, proxy (of the same shape) and d_golden, `rows` pairs.

    Texts are random words of one token each, every other prompt half as long; what such a model writes ends by chance alone.
    """
    config, draw = config_of(shape), random.Random(0)
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, config.vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 1, 0
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(config)
    config.num_labels = 1
    for name, model in (
        ("sft", policy),
        ("proxy", AutoModelForSequenceClassification.from_config(config)),
    ):
        model.save_pretrained(Path(folder, name))
        tokenizer.save_pretrained(Path(folder, name))
    Path(folder, "d_golden").mkdir()
    with open(Path(folder, "d_golden", "train.jsonl"), "w") as file:
        for i in range(rows):
            chosen, rejected = (
                " " + " ".join(draw.choices(words[2:], k=response_tokens - 1)) for _ in range(2)
            )
            prompt = " ".join(draw.choices(words[2:], k=prompt_tokens // (1 + i % 2)))
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            file.write(
                json.dumps(row | {"chosen_finished": True, "rejected_finished": True}) + "\n"
            )
