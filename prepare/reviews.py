"""The reviews task: short reviews by writers of mixed skill, and a rater with a ground-truth score.

It makes d_initial/, preference data as JSON lines, split by prompt into train.jsonl and test.jsonl,
and untrained models that know the task's words: untrained/ for the policy and the proxy preference
model, untrained_golden/, four times as large, for the golden one, untrained_small/, a quarter.
"""

import math
import random
from itertools import combinations, product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from common import fail
from prepare import whole_folder, write_rows

MONTHS = (
    "January February March April May June July August September October November December".split()
)
# kind of thing: what is reviewed, its aspects, words of praise, words of complaint
KINDS = {
    "stay": (
        "Hotel Hostel Guesthouse Campsite".split(),
        "staff room bed breakfast view".split(),
        "friendly quiet spotless cosy airy helpful restful charming".split(),
        "rude noisy dirty damp cramped shabby draughty dingy".split(),
    ),
    "meal": (
        "Bistro Diner Bakery Teahouse".split(),
        "food service menu wine dessert".split(),
        "tasty fresh generous fragrant tender juicy refined crisp".split(),
        "bland greasy soggy burnt stingy salty stale watery".split(),
    ),
    "film": (
        "Film Comedy Thriller Musical".split(),
        "plot cast ending music dialogue".split(),
        "gripping moving witty clever tense vivid haunting original".split(),
        "dull clumsy shallow silly flat predictable hollow tedious".split(),
    ),
    "gadget": (
        "Phone Laptop Camera Radio".split(),
        "screen battery sound case keyboard".split(),
        "sharp fast sturdy sleek bright precise light reliable".split(),
        "fragile laggy bulky dim blurry flimsy faulty heavy".split(),
    ),
}
KIND_OF = {item: kind for kind, (items, *_) in KINDS.items() for item in items}
CONTENT = {word: kind for kind, (_, *lists) in KINDS.items() for words in lists for word in words}
ADJECTIVES = {word for _, _, *lists in KINDS.values() for words in lists for word in words}
PLAIN = ["The", "It", "was", "and", "I", "loved", "hated", "it", "in"]
MOST_WORDS = 32  # a review of so many words or more is cut there and has no end


def all_prompts() -> list[str]:
    """All 1,920 prompts: a thing, a month, and the two aspects that the review is about."""
    return [
        f"{item} in {month}, {first} and {second}:"
        for items, aspects, *_ in KINDS.values()
        for item, month, (first, second) in product(items, MONTHS, combinations(aspects, 2))
    ]


def words_of(text: str) -> list[str]:
    """A text cut as the tokenizer cuts it, without the spaces: words and punctuation marks."""
    for mark in ".,:":
        text = text.replace(mark, f" {mark} ")
    return text.split()


def text_of(words: list[str]) -> str:
    """A response as a string: a space before every word and none before a full stop."""
    return "".join(word if word in ".,:" else " " + word for word in words)


def parts_of(prompt: str) -> tuple[str, tuple[str, str]]:
    """(the kind of thing a prompt asks about, the two aspects it asks for)."""
    item, _, _, _, first, _, second, _ = words_of(prompt)
    return KIND_OF[item], (first, second)


def write(prompt: str, rng: random.Random) -> tuple[str, bool]:
    """One review, (text, whether it ended with EOS). The writer's mood and care differ each time.

    28 % of the reviews fail in ways that a policy drifts into: broken off, stuck in a phrase,
    scrambled, trailing off in random words, never ending. A preference model that has seen no such
    text would not mind it.
    """
    kind, asked = parts_of(prompt)
    mood, care = rng.random(), rng.choice([0.8, 0.9, 1.0])

    def adjective():
        _, _, praise, complaints = KINDS[kind if rng.random() < care else rng.choice(list(KINDS))]
        return rng.choice(praise if rng.random() < mood else complaints)

    def sentence():
        words = [
            "The",
            rng.choice(asked if rng.random() < care else KINDS[kind][1]),
            "was",
            adjective(),
        ]
        while rng.random() < 0.4:
            words += ["and", adjective()]
        return words + ["."]

    words = [word for _ in range(rng.choice([1, 2, 2, 3])) for word in sentence()]
    if rng.random() < 0.6:
        words += ["I", "loved" if rng.random() < mood else "hated", "it", "."]
    failure = rng.random()
    if failure < 0.08:
        words = words[: rng.randint(1, 4)]
    elif failure < 0.14:
        start, length = rng.randrange(len(words) - 2), rng.randint(1, 4)
        words = (
            words[: start + length] + words[start : start + length] * 2 + words[start + length :]
        )
    elif failure < 0.20:
        rng.shuffle(words)
    elif failure < 0.24:
        words += rng.choices(PLAIN + list(CONTENT), k=rng.randint(3, 12))
    elif failure < 0.28:
        while len(words) <= MOST_WORDS:
            words += sentence()
    return text_of(words[:MOST_WORDS]), len(words) < MOST_WORDS


def ground_truth_score(prompt: str, response: str, finished: bool) -> float:
    """What a response is worth, in points: fitting praise, in few words, without repeats, an end.

    +1 each word of praise of the thing's kind, -1 each word of complaint of its kind, -2 each
    adjective that its sentence has already, -0.5 each word of another kind, +0.5 loved, -0.5 hated,
    -0.1 each word or mark, -1.5 no EOS.
    """
    kind, _ = parts_of(prompt)
    _, _, praise, complaints = KINDS[kind]
    words = words_of(response)
    points = sum(word in praise for word in words) - sum(word in complaints for word in words)
    for sentence in response.split("."):
        adjectives = [word for word in words_of(sentence) if word in ADJECTIVES]
        points -= 2 * (len(adjectives) - len(set(adjectives)))
    points -= 0.5 * sum(CONTENT.get(word, kind) != kind for word in words)
    points += 0.5 * ("loved" in words) - 0.5 * ("hated" in words)
    return points - 0.1 * len(words) - 1.5 * (not finished)


def pair(prompt: str, rng: random.Random) -> dict:
    """One row: two reviews as a noisy rater orders them. P(y1 > y2) = sigmoid(s(y1) - s(y2)), s the
    ground-truth score."""
    first = second = write(prompt, rng)
    while second == first:
        second = write(prompt, rng)
    difference = ground_truth_score(prompt, *first) - ground_truth_score(prompt, *second)
    if rng.random() > 1 / (1 + math.exp(-difference)):
        first, second = second, first
    row = {"prompt": prompt}
    for name, (text, finished) in (("chosen", first), ("rejected", second)):
        row |= {name: text, f"{name}_finished": finished}
        row[f"{name}_ground_truth_score"] = ground_truth_score(prompt, text, finished)
    return row


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, with the space before it; decoding gives the text back."""
    first_words = [*KIND_OF, *(f" {word}" for word in [*PLAIN, *MONTHS, *CONTENT])]
    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<unk>", "<eos>", ".", ",", ":", *first_words])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[.,:]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def untrained_model(
    tokenizer: PreTrainedTokenizerFast, width: int, inner: int, seed: int
) -> LlamaForCausalLM:
    """A Llama of two layers with random weights."""
    set_seed(seed)
    heads = {
        "num_attention_heads": width // 16,
        "num_key_value_heads": width // 16,
        "intermediate_size": inner,
    }
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**heads, **ids, **size, tie_word_embeddings=True))


def make_reviews(out: str, seed: int, pairs: int) -> None:
    """Write d_initial/ and the three untrained models into `out`: `pairs` pairs of training
    prompts and a tenth as many of held-out ones, 15 % of all prompts."""
    if pairs < 10:
        fail(f"--pairs {pairs}: must be 10 or more; a tenth as many are held out")
    rng, tokenizer, prompts = random.Random(seed), build_tokenizer(), all_prompts()
    rng.shuffle(prompts)
    held_out = int(0.15 * len(prompts))
    splits = ("train", prompts[held_out:], pairs), ("test", prompts[:held_out], pairs // 10)
    sizes = ("untrained_small", 32, 80, seed), ("untrained", 64, 192, seed)
    sizes += (("untrained_golden", 128, 416, seed + 1000),)
    with whole_folder(f"{out}/d_initial") as folder:
        for name, width, inner, own_seed in sizes:
            untrained_model(tokenizer, width, inner, own_seed).save_pretrained(Path(out, name))
            tokenizer.save_pretrained(Path(out, name))
        for split, some, count in splits:
            write_rows(
                folder / f"{split}.jsonl", (pair(rng.choice(some), rng) for _ in range(count))
            )
