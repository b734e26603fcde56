"""The reviews task: short reviews by writers of mixed skill, and a rater with a ground-truth score.

It makes d_initial/, preference data as JSON lines, split by prompt into train.jsonl and test.jsonl,
and untrained models that know the task's words: untrained/ for the policy and the proxy preference
model, untrained_golden/, four times as large, for the golden one, untrained_small/, a quarter.
"""

import math
import random
import re
from itertools import combinations, product

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from common import fail
from prepare import whole_folder, write_rows

MONTHS = "January February March April May June".split()
MONTHS += "July August September October November December".split()
# of each kind of thing: what is reviewed, its aspects, words of praise, words of complaint
WORDS = {
    "stay": """
        Hotel Hostel Guesthouse Campsite
        staff room bed breakfast view
        friendly quiet spotless cosy airy helpful restful charming
        rude noisy dirty damp cramped shabby draughty dingy""",
    "meal": """
        Bistro Diner Bakery Teahouse
        food service menu wine dessert
        tasty fresh generous fragrant tender juicy refined crisp
        bland greasy soggy burnt stingy salty stale watery""",
    "film": """
        Film Comedy Thriller Musical
        plot cast ending music dialogue
        gripping moving witty clever tense vivid haunting original
        dull clumsy shallow silly flat predictable hollow tedious""",
    "gadget": """
        Phone Laptop Camera Radio
        screen battery sound case keyboard
        sharp fast sturdy sleek bright precise light reliable
        fragile laggy bulky dim blurry flimsy faulty heavy""",
}
KINDS = {kind: [line.split() for line in text.strip().split("\n")] for kind, text in WORDS.items()}
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
    return re.findall(r"\w+|[.,:]", text)


def write(prompt: str, rng: random.Random, highest_mood: float = 1.0) -> tuple[str, bool]:
    """One review, (text, whether it ended with EOS). The writer's mood and care differ each time.

    The mood, the chance of praise, is uniform on [0, highest_mood]. 28 % of the reviews fail as a
    drifting policy does: broken off, stuck in a phrase, scrambled, trailing off in random words,
    never ending. A preference model that has seen no such text would not mind it.
    """
    item, _, _, _, first, _, second, _ = words_of(prompt)
    kind, asked = KIND_OF[item], (first, second)
    mood, care = highest_mood * rng.random(), rng.choice([0.8, 0.9, 1.0])

    def adjective():
        _, _, praise, complaints = KINDS[kind if rng.random() < care else rng.choice(list(KINDS))]
        return rng.choice(praise if rng.random() < mood else complaints)

    def sentence():
        aspect = rng.choice(asked if rng.random() < care else KINDS[kind][1])
        words = ["The", aspect, "was", adjective()]
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
        place, length = rng.randrange(len(words) - 2), rng.randint(1, 4)
        words[place:place] = 2 * words[place : place + length]
    elif failure < 0.20:
        rng.shuffle(words)
    elif failure < 0.24:
        words += rng.choices(PLAIN + list(CONTENT), k=rng.randint(3, 12))
    elif failure < 0.28:
        while len(words) <= MOST_WORDS:
            words += sentence()
    spaced = [word if word in ".,:" else f" {word}" for word in words[:MOST_WORDS]]
    return "".join(spaced), len(words) < MOST_WORDS


def ground_truth_score(prompt: str, response: str, finished: bool) -> float:
    """What a response is worth, in points: fitting praise, in few words, without repeats, an end.

    +1 each word of praise of the thing's kind, -1 each word of complaint of its kind, -2 each
    adjective that its sentence has already, -0.5 each word of another kind, +0.5 loved, -0.5 hated,
    -0.1 each word or mark, -1.5 no EOS.
    """
    kind, words = KIND_OF[words_of(prompt)[0]], words_of(response)
    _, _, praise, complaints = KINDS[kind]
    points = sum(word in praise for word in words) - sum(word in complaints for word in words)
    for sentence in response.split("."):
        adjectives = [word for word in words_of(sentence) if word in ADJECTIVES]
        points -= 2 * (len(adjectives) - len(set(adjectives)))
    points -= 0.5 * sum(CONTENT.get(word, kind) != kind for word in words)
    points += 0.5 * ("loved" in words) - 0.5 * ("hated" in words)
    return points - 0.1 * len(words) - 1.5 * (not finished)


def pair(prompt: str, rng: random.Random, highest_mood: float = 1.0) -> dict:
    """One row: two reviews as a noisy rater orders them. P(y1 > y2) = sigmoid(s(y1) - s(y2)), s the
    ground-truth score."""
    first = second = write(prompt, rng, highest_mood)
    while second == first:
        second = write(prompt, rng, highest_mood)
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
    words = ["<pad>", "<unk>", "<eos>", ".", ",", ":", *KIND_OF]
    words += [f" {word}" for word in (*PLAIN, *MONTHS, *CONTENT)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[.,:]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    options = {"pad_token": "<pad>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **options)


def make_untrained(folder: str, tokenizer, width: int, inner: int, seed: int) -> None:
    """Write a Llama of two layers with random weights."""
    set_seed(seed)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids |= {"bos_token_id": None, "vocab_size": len(tokenizer)}
    size = {"num_hidden_layers": 2, "hidden_size": width, "num_attention_heads": width // 16}
    size |= {"intermediate_size": inner, "max_position_embeddings": 128}
    config = LlamaConfig(**ids, **size, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_reviews(args) -> None:
    """Write d_initial/ and the three untrained models: --pairs pairs of training prompts, and a
    tenth as many of 288 held-out ones, 15 % of all prompts."""
    if args.pairs < 10:
        fail(f"--pairs {args.pairs}: must be 10 or more; a tenth as many are held out")
    rng, tokenizer, prompts = random.Random(args.seed), build_tokenizer(), all_prompts()
    rng.shuffle(prompts)
    splits = ("train", prompts[288:], args.pairs), ("test", prompts[:288], args.pairs // 10)
    with whole_folder(f"{args.out}/d_initial") as folder:
        make_untrained(f"{args.out}/untrained_small", tokenizer, 32, 80, args.seed)
        make_untrained(f"{args.out}/untrained", tokenizer, 64, 192, args.seed)
        make_untrained(f"{args.out}/untrained_golden", tokenizer, 128, 416, args.seed + 1000)
        for split, some, count in splits:
            rows = [pair(rng.choice(some), rng, args.mood) for _ in range(count)]
            write_rows(folder / f"{split}.jsonl", rows)
