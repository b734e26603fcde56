"""What the scripts share and no algorithm is about: tokenization and data, preference models and
evaluation, and the folder of a run.

Lengths are in tokens, log-probabilities and KL in nats. Ids are plain lists of ints until `pad` or
`collate` makes tensors of them.
"""

import contextlib
import csv
import gzip
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

import filelock
import safetensors
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

# ------------------------------------------------------------------------- tokenization and data


class Prompt(list):
    """A prompt's ids. messages: a conversation, for a preference model with its own template."""

    messages: list[dict] | None = None


def load_tokenizer(source: str):
    """A tokenizer from a folder or a Hub name. Where it has no padding token, EOS pads: masks alone
    say what is padding.

    `turn_end` is the first special id that its chat template writes behind an answer, or EOS.
    `ends` are the ids that end a response: these two, and those that `load_policy` adds.
    """
    tokenizer = from_pretrained(AutoTokenizer, source, "tokenizer")
    if tokenizer.eos_token_id is None:
        fail(f"{source}: its tokenizer has no EOS token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.turn_end, told = tokenizer.eos_token_id, ""  # write_turn reads it
    talk = [{"role": role, "content": "Four."} for role in ("system", "user", "assistant")]
    for turns in (talk, talk[1:]):
        with contextlib.suppress(Exception):  # no chat template, or one that wants other messages
            told = write_turn(tokenizer, turns, finished=True)[1]
    behind = tokenizer(told.rpartition("Four.")[2], add_special_tokens=False).input_ids
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokenizer.turn_end = next((i for i in behind if i in special), tokenizer.eos_token_id)
    tokenizer.ends = sorted({tokenizer.eos_token_id, tokenizer.turn_end})
    return tokenizer


def write_turn(tokenizer, turns: list[dict], finished: bool, **options):
    """(prompt, response, the id that ends it or None) as the chat template writes a conversation,
    whose last message answers.

    The response may have more than the answer: a space before it or behind it, or a thought.
    ValueError where the template would not write the answer behind its own prompt.
    """
    options["tokenize"] = False
    whole = tokenizer.apply_chat_template(turns, **options)
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, **options)
    if not whole.startswith(prompt):
        told = f"ends a prompt with {prompt[-30:]!r}, but writes an answer as {whole[-60:]!r}"
        raise ValueError(f"the chat template {told}; change it, or give chat_template_kwargs")
    rest, answer = whole.removeprefix(prompt), turns[-1]["content"].strip()
    end = max(rest.find(answer), 0) + len(answer)
    if not finished:
        return prompt, rest[:end], None
    space = rest[end:].partition(tokenizer.convert_ids_to_tokens(tokenizer.turn_end))[0]
    return prompt, rest[:end] + space, tokenizer.turn_end


def encode_prompts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of texts that begin with a prompt. Each distinct text is encoded once.

    They begin with the special tokens that the tokenizer puts before a text, unless the text has
    its BOS already, from a chat template. They do not end with those that it puts behind a text.
    """
    distinct = list(dict.fromkeys(texts))
    letter, *bodies = tokenizer(["a", *distinct], add_special_tokens=False).input_ids
    marked = tokenizer("a").input_ids  # with all special tokens
    first = marked[: marked.index(letter[0])] if letter else []
    ids, bos = {}, tokenizer.bos_token
    for text, body in zip(distinct, bodies):
        begun = bos is not None and text.startswith(bos)
        ids[text] = body if begun else first + body
    return [ids[text] for text in texts]


def encode(tokenizer, prompts: list[str], responses: list[str], ends: list[int | None]):
    """Ids of prompts and of responses. ends: the id behind each response, or None.

    A response's ids are what prompt + response adds to the prompt's ids, because that is what a
    model samples: encoded alone, many tokenizers put a word mark before a text. Where the prompt's
    own ids change when a response follows, the response is encoded alone.
    """
    heads = encode_prompts(tokenizer, prompts)
    wholes = encode_prompts(tokenizer, [x + y for x, y in zip(prompts, responses)])
    tails = []
    for head, whole, response, end in zip(heads, wholes, responses, ends):
        tail = whole[len(head) :]
        if whole[: len(head)] != head:
            tail = tokenizer(response, add_special_tokens=False).input_ids
        tails.append(tail if end is None else [*tail, end])
    return heads, tails


def decode(tokenizer, prompts: list[list[int]], responses: list[list[int]], special: bool = False):
    """(texts of responses, whether each has ended): `encode` undone. special: keep special tokens.

    A response is decoded behind its prompt: many tokenizers drop the space that begins a text.
    """
    options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    heads = dict.fromkeys(map(tuple, prompts))  # each is decoded once
    heads |= zip(heads, tokenizer.batch_decode(list(heads), **options))
    wholes = tokenizer.batch_decode([x + y for x, y in zip(prompts, responses)], **options)
    ends = getattr(tokenizer, "ends", [tokenizer.eos_token_id])
    finished = [not set(ends).isdisjoint(y[-1:]) for y in responses]
    return [whole[len(heads[tuple(x)]) :] for x, whole in zip(prompts, wholes)], finished


def pad(sequences: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, W) ids, padded to the longest on the "left" or "right", and a mask: 1 at a token."""
    ids = [torch.tensor(sequence) for sequence in sequences]
    masks = [torch.ones_like(row) for row in ids]
    padded = [pad_sequence(rows, batch_first=True, padding_side=side) for rows in (ids, masks)]
    return padded[0], padded[1]


def collate(prompts: list[list[int]], responses: list[list[int]], device):
    """(N, L) ids of prompts and responses, padded on the right, and an (N, W) mask of the last W
    columns, which begin where the shortest prompt ends: 1 at the response's tokens, EOS included.
    """
    ids, mask = pad([x + y for x, y in zip(prompts, responses)], "right")
    starts = torch.tensor([len(x) for x in prompts])
    mask *= torch.arange(ids.shape[1]) >= starts[:, None]
    return ids.to(device), mask[:, starts.min() :].to(device)


def load_rows(source: str, split: str = "train") -> list[dict]:
    """The rows of a .json, .jsonl, .csv or .parquet file (also gzipped), of a folder, or of a data
    set on the Hub or one file of it. A local file is read as it is: text stays text."""
    if Path(source, "d_golden").is_dir():
        fail(f"{source}: is a setup; name the pairs in it, for example {source}/d_golden")
    kinds = [f".{kind}{end}" for kind in ("jsonl", "json", "csv", "parquet") for end in ("", ".gz")]
    files = [Path(source), *(Path(source, split + kind) for kind in kinds)]
    files = [file for file in files if file.is_file()]
    try:
        if len(files) == 1:
            rows = read_file(files[0])
        elif source.endswith(tuple(kinds)) and "://" not in source and not Path(source).exists():
            raise ValueError("there is no such file")  # else the Hub would be asked
        else:
            rows = read_datasets(source, split)
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is no object with columns")
    except Exception as error:  # whatever a broken file may raise
        fail(f"{source}: cannot be read as {split} data ({first_line(error.__cause__ or error)})")
    return rows


def read_datasets(source: str, split: str) -> list[dict]:
    """The rows of what the library datasets knows: a folder, a name on the Hub, a file there."""
    import datasets  # only here: it takes half a second

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # what is read is not reported
    if Path(source, "state.json").is_file():  # of Dataset.save_to_disk
        return datasets.load_from_disk(source).to_list()
    if "://" in source:  # hf://datasets/OWNER/NAME/FILE
        kind = next((kind for kind in ("parquet", "csv") if f".{kind}" in source), "json")
        return datasets.load_dataset(kind, data_files=source, split="train").to_list()
    if not Path(source).is_dir():
        return datasets.load_dataset(source, split=split).to_list()
    if not set("[*?").isdisjoint(source):
        raise ValueError("datasets takes its path for a pattern; name a file in it")
    with tempfile.TemporaryDirectory() as cache:  # the usual one may answer with older files
        options = {"cache_dir": cache, "verification_mode": "no_checks"}  # a card may be older
        return datasets.load_dataset(source, split=split, **options).to_list()


def read_file(path: Path) -> list[dict]:
    """The rows of one local file. The name says its kind; JSON is one list, or a row a line."""
    kinds = Path(path.name.lower()).suffixes
    with (gzip.open if kinds[-1:] == [".gz"] else open)(path, "rb") as file:
        content = file.read()
    if ".parquet" in kinds:
        import pyarrow.parquet

        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if ".csv" in kinds:
        csv.field_size_limit(sys.maxsize)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        for number, row in enumerate(rows):
            if None in row:
                raise ValueError(f"row {number} has more cells than there are columns")
            for name in {"chosen_finished", "rejected_finished", "margin"} & row.keys():
                with contextlib.suppress(ValueError):  # all else stays text
                    row[name] = json.loads(row[name].lower())
        return rows
    if text.lstrip().startswith("["):
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
    return rows


def read_messages(name: str, messages) -> list[dict]:
    """Messages, {role, content}, of a column. Contents in parts become texts."""
    read = []
    try:
        for message in messages:
            parts = message["content"]
            if parts is None and message.get("tool_calls"):
                parts = ""  # many templates print None
            parts = parts if isinstance(parts, list) else [parts]
            texts = [part["text"] if isinstance(part, dict) else part for part in parts]
            read.append(message | {"role": message["role"], "content": "".join(texts)})
    except (TypeError, KeyError):
        read = []
    if not read:
        raise ValueError(f"{name} is no list of messages with role and content, a text or texts")
    return read


def split_messages(row: dict, names: tuple) -> tuple[list[dict], list[dict]]:
    """(the messages of the prompt, the answers) of a conversational row.

    The prompt is a column of its own, or inside both responses. An answer is one message.
    """
    responses = [read_messages(name, row[name]) for name in names]
    heads = [messages[:-1] for messages in responses] or [[]]
    prompt = heads[0]
    if not prompt or isinstance(row.get("prompt"), list):
        prompt = read_messages("prompt", row.get("prompt"))
    if prompt[-1]["role"] == "assistant":
        raise ValueError("prompt ends with the assistant's message; join it to the answers")
    answers = [messages[-1] for messages in responses]
    one = all(head in ([], prompt) for head in heads) and heads[0] == heads[-1]
    if not one or any(answer["role"] != "assistant" for answer in answers):
        told = "do not continue one prompt by one message each, the assistant's"
        raise ValueError(f"chosen and rejected {told}")
    return prompt, answers


def row_texts(row: dict, tokenizer, names: tuple) -> tuple[str, list[str], list, list | None]:
    """(prompt, responses, the id that ends each, messages) of a row. ValueError says what is wrong.

    Strings with or without a prompt column, or lists of {role, content}: then the chat template
    writes prompt and responses. names: of the responses, () for a prompt alone. A response with
    NAME_finished false has no end.
    """
    if not set(names) <= row.keys():
        told = f"there must be columns {' and '.join(names)}, there are {', '.join(row)}"
        raise ValueError(f"{told} (prompts alone serve online)")
    prompt, messages = row.get("prompt"), None
    texts = [row[name] for name in names]
    if isinstance(prompt, list) or (names and all(isinstance(text, list) for text in texts)):
        messages, answers = split_messages(row, names)
        texts = [answer["content"] for answer in answers]
        given = [row.get(name) or "null" for name in ("chat_template_kwargs", "tools")]
        options, tools = (json.loads(x) if isinstance(x, str) else x for x in given)
        options = (options or {}) | {"tools": tools, "tokenize": False}
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    elif len(names) == 2 and prompt is None and all(isinstance(text, str) for text in texts):
        halves = [text.rpartition("\n\nAssistant:") for text in texts]
        (prompt, mark, chosen), (other, _, rejected) = halves
        if not prompt or prompt != other:
            raise ValueError("there is no prompt, nor a common one up to '\\n\\nAssistant:'")
        prompt, texts = prompt + mark, [chosen, rejected]
    finished = [row.get(f"{name}_finished") is not False for name in names]
    ends = [tokenizer.eos_token_id if ended else None for ended in finished]
    for name, text in zip(("prompt", *names), (prompt, *texts)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is blank, or no text")
        text.encode()  # half of a surrogate pair is no text
        if not isinstance(row.get(f"{name}_finished"), bool | None):
            raise ValueError(f"{name}_finished must be true or false")
    if messages:
        for i, (name, text) in enumerate(zip(names, texts)):
            turns = [*messages, answers[i]]
            _, texts[i], ends[i] = write_turn(tokenizer, turns, finished[i], **options)
            if text.strip() not in texts[i]:
                raise ValueError(f"the chat template changes {name}: it writes {texts[i][-60:]!r}")
    if names and (texts[0], ends[0]) == (texts[1], ends[1]):
        raise ValueError("chosen and rejected are the same: there is nothing to prefer")
    return prompt, texts, ends, messages


def load_pairs(source: str, tokenizer, limits, on_bad_row, split="train", prompts_alone=False):
    """A list of pairs: `prompt`, `chosen`, `rejected` as ids, `text` the prompt as a string, `row`
    its number, `margin` a preference model's, or nan. Saved online pairs have ids already.

    limits: of a prompt and of a response, in tokens.
    prompts_alone: a column prompt is enough; there is no chosen and rejected then.
    A row that cannot be used ends the program with its number, counted from 0, and what is wrong,
    or, with on_bad_row "skip", is left out and counted. Nothing is ever cut to fit.
    """
    rows, names = load_rows(source, split), ("chosen", "rejected")
    columns = set().union(*rows)
    if prompts_alone and "prompt" in columns and columns.isdisjoint(names):
        names = ()
    if "chosen_ids" in columns:
        pairs, bad = saved_pairs(rows, tokenizer)
        on_bad_row, advice = "error", "a replay needs every row"
    else:
        pairs, bad = encoded_pairs(rows, tokenizer, names)
        advice = "--on-bad-row skip leaves them out"
    for pair in pairs:
        value = rows[pair["row"]].get("margin")
        pair["margin"] = value if type(value) in (int, float) else math.nan
    for kind, limit, some in (("prompt", limits[0], ["prompt"]), ("response", limits[1], names)):
        longest = max((len(pair[name]) for pair in pairs for name in some), default=0)
        for pair, name in product(pairs, some):
            if len(pair[name]) > limit:
                told = f"--max-{kind}-tokens is {limit}, the longest has {longest}"
                bad.setdefault(pair["row"], f"{name} has {len(pair[name])} tokens, {told}")
    if bad:
        first, count = f"row {min(bad)}: {bad[min(bad)]}", f"{len(bad)} of {len(rows)} rows"
        if on_bad_row == "error":
            fail(f"{source}: {first} ({count} cannot be used, counted from 0; {advice})")
        PartialState().print(f"{source}: {count} left out, the first is {first}")
    kept = [pair for pair in pairs if pair["row"] not in bad]
    return kept or fail(f"{source}: no usable row")


def encoded_pairs(rows: list[dict], tokenizer, names: tuple) -> tuple[list[dict], dict]:
    """(pairs as ids, {row number: why it cannot be used}). A response's ids must read as its text,
    in Unicode's normal form C: then no word is unknown, and no end inside."""
    read, bad = {}, {}
    for number, row in enumerate(rows):
        try:
            read[number] = row_texts(row, tokenizer, names)
        except Exception as error:  # also whatever a chat template raises
            bad[number] = first_line(error)
    prompts = [prompt for prompt, *_ in read.values()]
    pairs, ids = [], encode_prompts(tokenizer, prompts)
    unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id}  # texts are read without padding
    unknown -= {None, tokenizer.bos_token_id, *tokenizer.ends}
    final = {*tokenizer.ends, tokenizer.pad_token_id}  # ids that may only be a response's last
    for number, text, prompt in zip(read, prompts, map(Prompt, ids)):
        prompt.messages = read[number][3]
        pairs.append({"row": number, "text": text, "prompt": prompt})
        if not prompt:
            bad[number] = "prompt has no tokens"
        if not unknown.isdisjoint(prompt):
            bad[number] = "prompt has a word that the tokenizer does not know, or its padding token"
    for i, name in enumerate(names):
        texts, ends = ([row[k][i] for row in read.values()] for k in (1, 2))
        responses = encode(tokenizer, prompts, texts, ends)[1]
        bodies = [y if end is None else y[:-1] for y, end in zip(responses, ends)]
        again = decode(tokenizer, ids, bodies, special=True)[0]
        for pair, y, body, text, back in zip(pairs, responses, bodies, texts, again):
            pair[name] = y
            if text != back and normalize("NFC", text) != normalize("NFC", back):
                at = len(os.path.commonprefix([text, back]))
                told = f"its tokens read {back[at : at + 30]!r} where it has {text[at : at + 30]!r}"
                bad.setdefault(pair["row"], f"{name} cannot be written in this tokenizer: {told}")
            if not final.isdisjoint(body):
                told = "has a token in its text that ends a response or is padding; remove it there"
                bad.setdefault(pair["row"], f"{name} {told}")
    return pairs, bad


def saved_pairs(rows: list[dict], tokenizer) -> tuple[list[dict], dict]:
    """As encoded_pairs, of rows that an online run saved as ids. Both responses may be equal."""
    pairs, bad, count = [], {}, getattr(tokenizer, "embeddings", len(tokenizer))
    for number, row in enumerate(rows):
        pair = {name: row.get(f"{name}_ids") for name in ("prompt", "chosen", "rejected")}
        for name, ids in pair.items():
            right = isinstance(ids, list) and {type(i) for i in ids} == {int}
            if not right or min(ids) < 0 or max(ids) >= count:
                bad.setdefault(number, f"{name}_ids must be a list of the model's ids, not empty")
        if number not in bad:
            text = tokenizer.decode(pair["prompt"])
            pairs.append({"row": number, "text": text, **pair, "prompt": Prompt(pair["prompt"])})
    return pairs, bad


def generator(*key) -> torch.Generator:
    """A CPU generator that follows from its key alone, for example (seed, step, "sample").

    A resumed run needs no saved random state, and evaluating more often changes no training step.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # 63 bits


def batch_order(rows: int, batch_size: int, steps: int, seed: int, shuffle: str | int = "all"):
    """Lists of the rows of each step, (steps, batch_size), epoch after epoch.

    shuffle "all" permutes each epoch, "none" keeps the order of the data, a number N permutes
    within windows of N batches. A shorter run is a prefix of a longer one. Scripts with equal seed
    and data use the same rows in the same step.
    """
    if batch_size > rows and steps:
        fail(f"--batch-size {batch_size}: the data have only {rows} usable rows; lower it")
    order, windows = [], {"all": rows, "none": 1}
    window = windows.get(shuffle) or shuffle * batch_size
    for epoch in range(math.ceil(steps * batch_size / rows)):
        shuffler = generator(seed, epoch, "order")
        for first in range(0, rows, window):
            permutation = torch.randperm(min(window, rows - first), generator=shuffler)
            order += (first + permutation).tolist()
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(steps)]


# ------------------------------------------------------------- preference models and evaluation


def from_pretrained(kind, source: str, what: str, **options):
    """kind.from_pretrained(source), or one line that says what cannot be loaded from where."""
    if Path(source, "d_golden").is_dir():
        fail(f"{source}: is a setup; name a model in it, for example {source}/sft")
    if Path(source, "adapter_config.json").is_file():
        fail(f"{source}: has an adapter; merge it into its model, and name that model's folder")
    if source.startswith((".", "/", "~")) and not Path(source).exists():  # no name on the Hub
        fail(f"{source}: there is no such folder, so no {what} can be loaded from it")
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:
        fail(f"{source}: no {what} can be loaded from it ({first_line(error)})")


def load_model(kind, source: str, what: str, tokens: int, new_head: bool = False):
    """(a model in fp32, without dropout, that can read `tokens` tokens, its tokenizer).

    transformers fills missing weights with random numbers. With new_head the head's, and no
    others, may be missing. Weights are read from safetensors, never from a pickle.
    """
    tokenizer = load_tokenizer(source)
    config = from_pretrained(transformers.AutoConfig, source, what).to_dict()
    noises = {n: 0.0 for n in config if re.search("drop|jitter", n) and type(config[n]) is float}
    options = {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}
    if new_head:
        options["num_labels"] = 1
    model, info = from_pretrained(kind, source, what, **noises, **options)
    for name in sorted(info["missing_keys"]):
        if not new_head or name.startswith(f"{model.base_model_prefix}."):
            fail(f"{source}: is no {what}: it has no weights for {name}")
    check_context(model, tokens)
    tokenizer.embeddings = model.get_input_embeddings().weight.shape[0]  # ids that may be sampled
    words = tokenizer.get_vocab().items()
    if max(i for word, i in words if word != tokenizer.unk_token) >= tokenizer.embeddings:
        told = f"its tokenizer has {len(tokenizer)} tokens, its model only {tokenizer.embeddings}"
        fail(f"{source}: {told}; they do not belong together")
    if kind is AutoModelForSequenceClassification:
        texts = [[7 * i % tokenizer.embeddings for i in range(n)] for n in (tokens // 2, tokens)]
        try:
            with torch.no_grad():
                alone, beside = score(model.eval(), texts[:1]), score(model, texts)[:1]
        except Exception as error:
            fail(f"{source}: is no {what} that can be asked of any text ({first_line(error)})")
        if not alone.allclose(beside, rtol=1e-3, atol=1e-3, equal_nan=True):
            fail(f"{source}: is no {what} that can be asked: a longer text beside changes a score")
    return model.eval(), tokenizer


def check_context(model, tokens: int) -> None:
    """End the program where a model cannot read a sequence of so many tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    limit -= 0 if padding is None else padding + 1  # RoBERTa counts from there
    if tokens > limit:
        told = f"reads at most {limit} tokens, {tokens} may be asked of it"
        fail(f"{model.name_or_path}: {told}; lower the --max-...-tokens")


@torch.no_grad()
def load_policy(source: str, tokens: int):
    """(causal language model that can read `tokens` tokens, its tokenizer), folder or Hub name.

    What the model says of a text must be the same whether it reads it whole, as in training, or
    piece by piece with a cache and padding on the left, as in sampling. That is tried here.
    """
    what = "causal language model"
    model, tokenizer = load_model(AutoModelForCausalLM, source, what, tokens)
    if "SequenceClassification" in str(model.config.architectures):
        fail(f"{source}: is a preference model, no {what}")
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    tokenizer.ends = sorted({*tokenizer.ends, *ends} - {None})
    ids = torch.arange(max(2, tokens))[None] * 7 % tokenizer.embeddings  # any text of that length
    padded = torch.cat([ids[:, :1], ids], 1)
    mask = torch.ones_like(padded).index_fill(1, torch.tensor(0), 0)
    positions, cut = (mask.cumsum(1) - 1).clamp(min=0), min(ids.shape[1] // 2, 16) + 1
    last, pieces = torch.tensor([cut - 2, ids.shape[1] - 1]), []  # tokens of the two pieces
    try:
        whole = model.train()(ids, use_cache=False, logits_to_keep=last).logits
        model.eval()
        cache = transformers.DynamicCache(config=model.config)
        for part in (slice(0, cut), slice(cut, mask.shape[1])):
            inputs = {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part]}
            inputs |= {"past_key_values": cache, "logits_to_keep": 1}
            pieces.append(model(padded[:, part], **inputs).logits)
            cache.batch_select_indices(torch.tensor([0]))
    except Exception as error:
        fail(f"{source}: is no {what} that can be sampled from ({first_line(error)})")
    if not whole.isfinite().all():
        fail(f"{source}: its logits are no finite numbers; its weights are broken")
    gap = whole.log_softmax(-1) - torch.cat(pieces, 1).log_softmax(-1)
    if gap.abs().max() > 1e-3:
        told = f"read piece by piece, as in sampling, differs from a text of {tokens} tokens whole"
        fail(f"{source}: is no {what} that can be sampled from: a text {told}")
    return model, tokenizer


@dataclass
class PreferenceModel:
    """Pairwise, r(x, y1, y2), or pointwise, s(x, y), as the model's config says."""

    model: "transformers.PreTrainedModel"
    tokenizer: "transformers.PreTrainedTokenizerBase"
    policy_tokenizer: "transformers.PreTrainedTokenizerBase | None"  # None: the same as its own
    pairwise: bool
    scores: dict = field(default_factory=dict)  # of the baseline responses: asked for every time


def load_preference_model(source: str | None, policy_tokenizer, limits: tuple[int, int], device):
    """A preference model of prepare/, or any reward model with one label, which is pointwise.

    None stays None. limits: of a prompt and of a response that it may be asked to read, in tokens.
    """
    if source is None:
        return None
    what, tokens = "preference model", sum(limits)
    config = from_pretrained(transformers.AutoConfig, source, what)
    pairwise = getattr(config, "preference_form", None) == "pairwise"
    if pairwise:
        tokens += limits[1] + 2
    model, tokenizer = load_model(AutoModelForSequenceClassification, source, what, tokens)
    if model.config.num_labels != 1:
        fail(f"{source}: has {model.config.num_labels} labels; a {what} has one")
    same = tokenizer.get_vocab() == policy_tokenizer.get_vocab()
    same &= tokenizer.eos_token == policy_tokenizer.eos_token
    same &= tokenizer.chat_template in (None, policy_tokenizer.chat_template)
    same &= getattr(policy_tokenizer, "embeddings", 0) <= tokenizer.embeddings
    if same:
        policy_tokenizer = None
    return PreferenceModel(model.to(device), tokenizer, policy_tokenizer, pairwise)


def score(model, sequences: list[list[int]]) -> torch.Tensor:
    """(N,) one number for each sequence of ids, read off its last token.

    The last token is found by length. transformers' own forward looks for the padding id: where
    that is EOS too, it reads a response that ended one token early.
    """
    ids, mask = (tensor.to(model.device) for tensor in pad(sequences, "right"))
    if not hasattr(model, "score"):  # an encoder pools in its own way
        return model(ids, attention_mask=mask).logits.squeeze(-1).float()
    hidden = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    return model.score(hidden[torch.arange(len(ids)), mask.sum(1) - 1]).squeeze(-1).float()


@torch.no_grad()
def score_all(preference: PreferenceModel, sequences) -> dict[tuple, float]:
    """{sequence: its score; of a pairwise model, the probability that the first is better}."""
    model, values = preference.model, []
    distinct = sorted({tuple(s) for s in sequences}, key=lambda s: (len(s), s))
    size = 32 if model.device.type == "cpu" else 128  # what fits a CPU's cache is faster
    for i in range(0, len(distinct), size):
        scores = score(model, distinct[i : i + size])
        if preference.pairwise:
            scores = scores.sigmoid()
        values += scores.tolist()
    if not all(map(math.isfinite, values)):
        fail(f"{model.name_or_path}: gives a text a score that is no finite number")
    return dict(zip(distinct, values))


def sequences_to_compare(pairwise: bool, eos: int, prompts, first, second) -> tuple[list, list]:
    """What a preference model reads: sequences a and b, whose scores are subtracted.

    Pointwise: x y1 and x y2. Pairwise: both responses behind the prompt, in both orders, EOS
    behind each.
    """
    if pairwise:
        pairs = list(zip(first, second))
        first = [y1 + [eos] + y2 + [eos] for y1, y2 in pairs]
        second = [y2 + [eos] + y1 + [eos] for y1, y2 in pairs]
    return [x + y for x, y in zip(prompts, first)], [x + y for x, y in zip(prompts, second)]


def own_ids(preference: PreferenceModel, prompts: list, responses: list) -> tuple[list, list]:
    """The same texts in the preference model's own ids and chat template."""
    own = preference.tokenizer
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    heads = preference.policy_tokenizer.batch_decode(prompts, **options)
    texts, finished = decode(preference.policy_tokenizer, prompts, responses)
    ends = [own.eos_token_id if ended else None for ended in finished]
    for i, prompt in enumerate(prompts):
        messages = getattr(prompt, "messages", None)
        if messages and own.chat_template:
            try:
                turns = [*messages, {"role": "assistant", "content": texts[i].strip()}]
                heads[i], texts[i], ends[i] = write_turn(own, turns, finished[i])
            except Exception as error:  # whatever a template may raise
                why = f"({first_line(error)}): {messages}"
                fail(f"{preference.model.name_or_path}: its chat template refuses a prompt {why}")
    return encode(own, heads, texts, ends)


@torch.no_grad()
def margin(
    preference: PreferenceModel, prompts: list, first: list, second: list, keep_second: bool = False
) -> torch.Tensor:
    """(N,) how much the first response is preferred. Its sign decides labels, wins and accuracy.

    Pointwise s(x, y1) - s(x, y2). Pairwise r(x, y1, y2) - r(x, y2, y1): both orders, against
    position bias (Tang et al. 2024, Appendix A.2). Each distinct sequence is scored once, so that
    equal responses give exactly 0. keep_second: keep the scores of the second responses, which
    are asked for again.
    """
    if preference.policy_tokenizer is not None:
        _, second = own_ids(preference, prompts, second)
        prompts, first = own_ids(preference, prompts, first)
    eos, known = preference.tokenizer.eos_token_id, preference.scores
    a, b = sequences_to_compare(preference.pairwise, eos, prompts, first, second)
    check_context(preference.model, max(map(len, a + b), default=0))
    with torch.autocast(preference.model.device.type, enabled=False):  # fp32, whatever trains
        if keep_second and not preference.pairwise:  # apart: a resumed run must get the same digits
            known.update(score_all(preference, {tuple(s) for s in b} - known.keys()))
        values = known | score_all(preference, {tuple(s) for s in a + b} - known.keys())
    return torch.tensor([values[tuple(s)] - values[tuple(t)] for s, t in zip(a, b)])


def wins(margins: torch.Tensor) -> torch.Tensor:
    """(N,) 1 where the margin is positive, 0 where it is negative, one half for a tie."""
    return margins.double().heaviside(torch.tensor(0.5, dtype=torch.float64))


def mean_stderr(values: torch.Tensor, clusters: list) -> tuple[float | None, float | None]:
    """Mean of (N,) values and its standard error, values of one cluster (one prompt) counted as
    dependent. None, None of no values."""
    if not clusters:
        return None, None
    numbers = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = torch.tensor([numbers[name] for name in clusters])
    values, count = values.double(), len(numbers)
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, index, values - values.mean())
    spread = sums.pow(2).sum() * count / max(count - 1, 1)
    return values.mean().item(), spread.sqrt().item() / len(values)


def in_shares(count: int, batch_size: int, function) -> list:
    """A value for each of `count` rows: function(row numbers) gives those of `batch_size` rows.

    Of several processes each computes its share, and all get the whole list.
    """
    values = []
    with PartialState().split_between_processes(list(range(count))) as own:
        for i in range(0, len(own), batch_size):
            values += function(own[i : i + batch_size])
    return gather_object(values)


@dataclass
class Evaluation:
    """What a policy is measured on: the same in every run from one setup."""

    prompts: list[Prompt]  # as ids: training prompts, then held-out ones
    texts: list[str]  # the same as strings
    train_count: int  # how many of them are training prompts
    baseline: str  # "baseline": stored responses; "sft": the reference's own samples
    baseline_responses: list[list[int]]  # to each prompt
    pairs: list[dict]  # P preference pairs, for the policy's accuracy as a classifier
    golden: PreferenceModel | None
    proxy: PreferenceModel | None
    reference_logprobs: torch.Tensor | None = None  # (P, 2), filled in by the script


def load_evaluation(args, tokenizer, pairs: list[dict], respond, device) -> Evaluation:
    """The preference models, and the prompts and responses that are stored with --baseline.

    Without it, the first distinct prompts of the pairs, and what respond(prompts) gives: samples
    of the reference.
    """
    limits = args.max_prompt_tokens, args.max_response_tokens
    golden = load_preference_model(args.golden, tokenizer, limits, device)
    proxy = load_preference_model(args.proxy, tokenizer, limits, device)
    own = str(Path(args.setup or "", "d_golden"))
    if args.setup and args.dataset != own and Path(own).is_dir():  # --dataset is for training alone
        pairs = load_pairs(own, tokenizer, limits, args.on_bad_row)
    some = [pair for pair in pairs if "chosen" in pair]  # prompts alone have no responses
    some = random.Random(0).sample(some, min(args.eval_prompts, len(some)))
    some.sort(key=lambda p: len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"])))
    if args.baseline is None:
        distinct = list({pair["text"]: pair for pair in pairs}.values())[: args.eval_prompts]
        prompts, texts = [p["prompt"] for p in distinct], [p["text"] for p in distinct]
        answers = []
        if golden or proxy:
            told = f"win rates are against SFT's own samples, {len(texts)} prompts"
            PartialState().print(f"no --baseline: {told}")
            answers = respond(prompts)
        return Evaluation(prompts, texts, len(texts), "sft", answers, some, golden, proxy)

    source = str(Path(args.baseline, "responses.jsonl"))
    rows, splits = load_rows(source), {"train": [], "test": []}
    for asked in load_pairs(source, tokenizer, limits, args.on_bad_row, prompts_alone=True):
        row, prompt = rows[asked["row"]], asked["prompt"]
        right = isinstance(row.get("response"), str) and isinstance(row.get("finished"), bool)
        if not right or row.get("split") not in splits:
            told = "split must be train or test, response a text, finished true or false"
            fail(f"{source}: row {asked['row']}: {told}")
        prompt.messages = row.get("messages")
        end = tokenizer.turn_end if prompt.messages else tokenizer.eos_token_id
        answer = row["response"], end if row["finished"] else None
        splits[row["split"]].append((prompt, asked["text"], *answer))
    train, test = (kept[: args.eval_prompts] for kept in splits.values())
    if not train:
        fail(f"{source}: has no row of the split train; win rate and KL need its prompts")
    prompts, texts, answers, ends = map(list, zip(*train, *test))
    responses = encode(tokenizer, texts, answers, ends)[1]
    return Evaluation(prompts, texts, len(train), "baseline", responses, some, golden, proxy)


def summarize(evaluation, tokenizer, step: int, responses, kl: list, logratios, size: int):
    """(a row of evals.jsonl, the rows behind it: one a prompt) of a policy after `step` updates.

    responses: ids, to each prompt. kl: of the first of them. logratios: (P, 2), of chosen and
    rejected. size: texts that a preference model scores at a time. None: there is no such model.
    """
    texts, train = evaluation.texts, evaluation.train_count
    words, finished = decode(tokenizer, evaluation.prompts, responses)
    splits = ["train"] * train + ["test"] * (len(texts) - train)
    columns = {"split": splits, "prompt": texts, "response": words, "finished": finished}
    row = {"step": step}
    row["kl"], row["kl_stderr"] = mean_stderr(torch.tensor(kl), texts[: len(kl)])
    row["baseline"] = evaluation.baseline
    asked = evaluation.prompts, responses, evaluation.baseline_responses
    for name, model in (("win_rate", evaluation.golden), ("proxy_win_rate", evaluation.proxy)):

        def margins_of(rows, model=model):
            part = ([column[i] for i in rows] for column in asked)
            return margin(model, *part, keep_second=True).tolist()

        if model is not None:
            columns[f"{name}_margin"] = in_shares(len(texts), size, margins_of)
        for key, part in ((name, slice(train)), (f"{name}_heldout", slice(train, None))):
            margins = columns.get(f"{name}_margin", [])[part]
            rate = mean_stderr(wins(torch.tensor(margins)), texts[part][: len(margins)])
            row[key], row[f"{key}_stderr"] = rate
    verdicts = zip(columns.get("win_rate_margin", []), columns.get("proxy_win_rate_margin", []))
    products = [golden * proxy for golden, proxy in verdicts][:train]  # above 0 where they agree
    rate = mean_stderr(wins(torch.tensor(products)), texts[: len(products)])
    row["agreement"], row["agreement_stderr"] = rate
    row |= {"accuracy": None, "chosen_logratio": None, "rejected_logratio": None}
    if len(logratios):
        row["accuracy"] = wins(logratios[:, 0] - logratios[:, 1]).mean().item()
        row["chosen_logratio"], row["rejected_logratio"] = logratios.mean(0).tolist()
    row["response_length"] = sum(map(len, responses)) / len(responses)
    row["finished"] = sum(finished) / len(finished)
    row["samples"] = [prompt + response for prompt, response in zip(texts[:3], words)]
    return row, [dict(zip(columns, values)) for values in zip(*columns.values())]


def summary(row: dict) -> str:
    """A row of evals.jsonl as a line to read while a run is on its way."""
    told = [f"step {row['step']}: KL {row['kl']:.2f} ± {row['kl_stderr']:.2f} nats"]
    for name, title in (("win_rate", "win rate"), ("proxy_win_rate", "by the proxy")):
        if row[name] is not None:
            told.append(f"{title} {row[name]:.3f} ± {row[f'{name}_stderr']:.3f}")
    if row["accuracy"] is not None:
        told.append(f"accuracy {row['accuracy']:.3f}")
    return ", ".join([*told, f"{row['response_length']:.1f} tokens a response"])


# ------------------------------------------------------------------- the folder of a run, errors

PARTS = {"model": "sft", "dataset": "d_golden", "proxy": "proxy"}  # of a setup, by argument
PARTS |= {"golden": "golden", "baseline": "baseline"}
# what may differ when a run continues: of the parts their SHA-256 must be the same
FREE = {"out", "resume", "wandb", "save_policies", "eval_batch_size", "gradient_checkpointing"}
FREE |= {"setup", "id", *PARTS}
LOCKS = []  # held until the process ends, however it ends


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 1."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)  # of several processes the first one speaks; then the launcher ends this one
    raise SystemExit(f"error: {message}")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_command(main, args) -> None:
    """main(args). What no program can prevent ends in one line: Ctrl-C, a full disk, no memory."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # "±" becomes "?" where a terminal has no "±"
            stream.reconfigure(errors="replace")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    try:
        main(args)
    except KeyboardInterrupt:
        fail("interrupted; repeat the command to continue, a run's with --resume")
    except (OSError, EOFError, safetensors.SafetensorError) as error:
        fail(f"a file could not be read or written ({first_line(error)})")
    except RuntimeError as error:
        known = {
            "memory(?! acc)": "lower --micro-batch-size, --eval-batch-size or a --max-...-tokens",
            "gloo|NCCL": "another process of this run has ended; --resume continues the run",
            "StreamReader|weights_only": "the checkpoint is damaged; begin a new run",
            "StreamWriter|iostream error|inline_container": "a file could not be written",
        }
        for marks, advice in known.items():
            if re.search(marks, str(error)):
                fail(f"{first_line(error)}: {advice}")
        raise


def check_ranges(args, zero: tuple[str, ...] = ("seed", "max_grad_norm")) -> None:
    """End the program where a number is negative or not finite, or 0 and not named in `zero`."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, tuple) else (value,):
            low = "0 or more" if name in zero else "above 0"
            if type(number) in (int, float):
                if not 0 <= number < math.inf or (number == 0 and name not in zero):
                    fail(f"--{name.replace('_', '-')} {number}: must be a finite number, {low}")


def check_args(args, script: str, required: tuple[str, ...]) -> None:
    """Check a script's Args, and fill what was not given from the parts of the setup."""
    check_ranges(args)
    if args.setup is None and args.model is None and args.dataset is None:
        args.setup = "setups/reviews"
    if args.setup and not Path(args.setup).is_dir():
        made = f"`python -m prepare --out {args.setup}` makes the reviews task there"
        fail(f"--setup {args.setup}: no such folder; {made}, or pass --model and --dataset")
    for name, part in PARTS.items():
        path = Path(args.setup or "", part)
        if args.setup and getattr(args, name) is None and path.exists():
            setattr(args, name, str(path))
    for name in required:
        if getattr(args, name) is None:
            fail(f"--{name} is missing: pass it, or a --setup that has {PARTS[name]}/")
    for name, need in {"wandb": "pip install wandb", "fast": "fast.py beside this script"}.items():
        if getattr(args, name) and not importlib.util.find_spec(name):
            fail(f"--{name} needs {name}: {need}")
    if args.out is None:
        args.out = f"runs/{Path(args.setup or args.model).name}/{script}__{args.seed}"
    read_record(args)


def read_record(args) -> dict:
    """args.json of the run in --out, {} for a new run; no other folder may be written."""
    out = Path(args.out)
    if not (out / "args.json").exists():
        if out.is_file() or {path.name for path in out.glob("*")} - {"args.partial", ".lock"}:
            fail(f"--out {out}: holds something that is no run; name another folder")
        return {}
    if not args.resume:
        fail(f"--out {out}: holds a run; name another folder, or continue it with --resume")
    try:
        was = json.loads((out / "args.json").read_text())
        return {"script": was["script"], **was}
    except (ValueError, TypeError, KeyError):
        fail(f"{out}/args.json: is not what a run wrote; name another folder")


def begin_run(args, script: str, pairs: list[dict]) -> tuple[int, str]:
    """Claim --out, write args.json, cut the logs back. (step of the last checkpoint, the run's id).

    args.json has the arguments, the git revision, versions, and the SHA-256 of what was read. A run
    continues only where all of it is as it was.
    """
    out, state = Path(args.out), PartialState()
    if args.batch_size % state.num_processes:
        fail(f"--batch-size {args.batch_size}: is no multiple of {state.num_processes} processes")
    if state.is_main_process:
        claim(out)
        now = {"script": script, "id": os.urandom(8).hex(), **asdict(args)}
        now |= {f"{name}_sha256": sha256(getattr(args, name)) for name in PARTS}
        texts = "\0".join(pair["text"] for pair in pairs)
        now |= {"prompts_sha256": hashlib.sha256(texts.encode()).hexdigest()}
        around = {"git_revision": git_revision(), "python": sys.version.split()[0]}
        around |= {"torch": torch.__version__, "transformers": transformers.__version__}
        around |= {"threads": torch.get_num_threads(), "device": state.device.type}
        around |= {"processes": state.num_processes, "micro_batch_size": args.micro_batch_size}
        now = json.loads(json.dumps(now | around))  # as it will be read
        was = read_record(args) or now  # again: another process may have begun here meanwhile
        names = [name for name in now if name not in FREE and was.get(name) != now[name]]
        changes = {name: f"{name} was {was.get(name)}, is {now[name]}" for name in names}
        refused = [change for name, change in changes.items() if name not in around]
        if refused:
            fail(f"--out {out}: {'; '.join(refused)}: repeat the run's own, or name another folder")
        for change in changes.values():
            print(f"{out}: {change}; numbers may differ")
        if was is now:
            (out / "args.partial").write_text(json.dumps(now, indent=1) + "\n")
            (out / "args.partial").replace(out / "args.json")
    state.wait_for_everyone()
    if (out / "policy").exists():
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
        state.print(f"{out}: this run is finished")
        raise SystemExit(0)
    kept = out.glob("checkpoint/*[0-9]")  # whole ones; aside they have another name
    last = max((int(path.name) for path in kept), default=0)
    if state.is_main_process:
        logs = [*out.glob("*.jsonl"), *out.glob("online_pairs/*.jsonl")]
        steps = {path.name: cut_back(path, last) for path in logs}.get("metrics.jsonl", 0)
        if steps != last:
            told = f"has {steps} steps, its checkpoint is of step {last}; begin a new run"
            fail(f"{out}/metrics.jsonl: {told}")
    return last, json.loads((out / "args.json").read_text())["id"]


def claim(out: Path) -> None:
    """Make a folder, and keep other processes from writing there until this one ends."""
    out.mkdir(parents=True, exist_ok=True)
    LOCKS.append(filelock.FileLock(out / ".lock"))
    try:
        LOCKS[-1].acquire(blocking=False)
    except filelock.Timeout:
        fail(f"--out {out}: another process is writing here; wait, or name another folder")


def cut_back(path: Path, last: int) -> int:
    """Keep the rows of a log that were written before step `last`; how many these are."""
    kept = []
    try:
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] >= last:
                break
            kept.append(line)
    except (ValueError, TypeError, KeyError):
        fail(f"{path}: line {len(kept) + 1} is not what a run wrote; begin a new run")
    path.with_suffix(".partial").write_text("".join(kept))
    path.with_suffix(".partial").replace(path)
    return len(kept)


def sha256(source: str | None) -> str | None:
    """SHA-256 of a file, or of a folder's files and their names; a name on the Hub is itself."""
    path, digest = Path(source or ""), hashlib.sha256()
    if source is None or not path.exists():
        return source
    files = [Path(at, name) for at, _, names in os.walk(path, followlinks=True) for name in names]
    for file in sorted(files) or [path]:
        if file.is_file() and file.name != ".lock":
            digest.update(str(file.relative_to(path)).encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def git_revision() -> str | None:
    """The git revision of the code, with -dirty behind it where files were edited."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
