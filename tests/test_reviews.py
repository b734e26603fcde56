"""The reviews task: what its ground-truth score says, and that its data hold what the setting needs."""

import math
import random

import pytest

from prepare.reviews import (
    MOST_WORDS,
    all_prompts,
    build_tokenizer,
    ground_truth_score,
    pair,
    words_of,
    write,
)

PROMPT = "Hotel in May, staff and view:"


@pytest.mark.parametrize(
    "response, finished, points",
    [
        (" The staff was friendly.", True, 1 - 0.5),  # five words and marks cost half a point
        (
            " The staff was friendly and friendly.",
            True,
            2 - 2 - 0.7,
        ),  # the repetition costs two points
        (
            " The staff was friendly. The view was friendly.",
            True,
            2 - 1.0,
        ),  # in another sentence it is none
        (" The staff was friendly and cosy. I loved it.", True, 2 + 0.5 - 1.1),
        (" The bed was damp. I hated it.", True, -1 - 0.5 - 0.9),
        (" The staff was tasty.", True, -0.5 - 0.5),  # praise of a meal
        (" The plot was airy.", True, 1 - 0.5 - 0.5),  # an aspect of a film
        (" The staff was", False, -0.3 - 1.5),
    ],
)
def test_the_ground_truth_score_by_hand(response, finished, points):
    assert ground_truth_score(PROMPT, response, finished) == pytest.approx(points)


def test_prompts_are_many_and_distinct():
    assert len(set(all_prompts())) == len(all_prompts()) == 1920


def test_texts_come_back_to_the_letter_and_no_word_is_unknown():
    tokenizer, rng = build_tokenizer(), random.Random(0)
    for prompt in rng.sample(all_prompts(), 300):
        text, finished = write(prompt, rng)
        ids = tokenizer(prompt + text).input_ids
        assert tokenizer.decode(ids) == prompt + text
        assert tokenizer.unk_token_id not in ids and len(ids) == len(words_of(prompt + text))
        assert finished == (len(words_of(text)) < MOST_WORDS)


def test_writers_fail_in_the_ways_a_policy_drifts_into():
    rng = random.Random(1)
    texts = [write(PROMPT, rng) for _ in range(4000)]
    broken_off = sum(len(words_of(text)) <= 4 and finished for text, finished in texts) / len(texts)
    endless = sum(not finished for _, finished in texts) / len(texts)
    words = [words_of(text) for text, _ in texts]
    thrice = sum(any(a == b == c for a, b, c in zip(w, w[1:], w[2:])) for w in words) / len(texts)
    no_stop = sum(not text.endswith(".") for text, _ in texts) / len(texts)
    assert (
        0.05 < broken_off < 0.12
        and 0.03 < endless < 0.10
        and thrice > 0.005
        and 0.12 < no_stop < 0.35
    )


def test_the_rater_is_noisy_in_the_measure_of_the_difference():
    rng = random.Random(2)
    rows = [pair(PROMPT, rng) for _ in range(6000)]
    gaps = [row["chosen_ground_truth_score"] - row["rejected_ground_truth_score"] for row in rows]
    for size in (0.5, 1.0, 2.0):
        near = [gap > 0 for gap in gaps if size - 0.25 < abs(gap) < size + 0.25]
        expected = sum(
            1 / (1 + math.exp(-abs(gap))) for gap in gaps if size - 0.25 < abs(gap) < size + 0.25
        ) / len(near)
        assert sum(near) / len(near) == pytest.approx(
            expected, abs=4 * (expected * (1 - expected) / len(near)) ** 0.5
        )
