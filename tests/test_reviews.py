"""The reviews task: what its ground-truth score says, and that its data hold what it needs."""

import hashlib
import json
import math
import random

import pytest

from prepare import reviews

PROMPT = "Hotel in May, staff and view:"
POINTS = [  # response, finished, points
    (" The staff was friendly.", True, 1 - 0.5),  # each word and mark costs a tenth
    (" The staff was friendly and friendly.", True, 2 - 2 - 0.7),  # the repetition costs two
    (" The staff was friendly. The view was friendly.", True, 2 - 1.0),  # in another sentence none
    (" The staff was friendly and cosy. I loved it.", True, 2 + 0.5 - 1.1),
    (" The bed was damp. I hated it.", True, -1 - 0.5 - 0.9),
    (" The staff was tasty.", True, -0.5 - 0.5),  # praise of a meal
    (" The plot was airy.", True, 1 - 0.5 - 0.5),  # an aspect of a film
    (" The staff was", False, -0.3 - 1.5),
]


@pytest.mark.parametrize("response, finished, points", POINTS)
def test_the_ground_truth_score_by_hand(response, finished, points):
    assert reviews.ground_truth_score(PROMPT, response, finished) == pytest.approx(points)


def test_texts_come_back_to_the_letter_and_no_word_is_unknown():
    tokenizer, rng, prompts = reviews.build_tokenizer(), random.Random(0), reviews.all_prompts()
    assert len(set(prompts)) == len(prompts) == 1920
    for prompt in rng.sample(prompts, 300):
        text, finished = reviews.write(prompt, rng)
        ids = tokenizer(prompt + text).input_ids
        assert tokenizer.decode(ids) == prompt + text and tokenizer.unk_token_id not in ids
        assert len(ids) == len(reviews.words_of(prompt + text))
        assert finished == (len(reviews.words_of(text)) < reviews.MOST_WORDS)


def test_writers_fail_in_the_ways_a_policy_drifts_into():
    rng = random.Random(1)
    texts = [
        (text, reviews.words_of(text), end)
        for text, end in (reviews.write(PROMPT, rng) for _ in range(4000))
    ]
    assert 0.05 < sum(len(words) <= 4 and end for _, words, end in texts) / 4000 < 0.12  # too short
    assert 0.03 < sum(not end for *_, end in texts) / 4000 < 0.10  # endless
    thrice = [any(a == b == c for a, b, c in zip(w, w[1:], w[2:])) for _, w, _ in texts]
    assert sum(thrice) / 4000 > 0.005
    assert 0.12 < sum(not text.endswith(".") for text, *_ in texts) / 4000 < 0.35


def test_the_rater_is_noisy_in_the_measure_of_the_difference():
    rng, names = random.Random(2), ("chosen_ground_truth_score", "rejected_ground_truth_score")
    pairs = [reviews.pair(PROMPT, rng) for _ in range(6000)]
    rows = [[row[name] for name in names] for row in pairs]
    for size in (0.5, 1.0, 2.0):
        near = [a - b for a, b in rows if size - 0.25 < abs(a - b) < size + 0.25]
        expected = sum(1 / (1 + math.exp(-abs(gap))) for gap in near) / len(near)
        error = (expected * (1 - expected) / len(near)) ** 0.5
        assert sum(gap > 0 for gap in near) / len(near) == pytest.approx(expected, abs=4 * error)


def test_the_share_of_praise_follows_the_mood():
    """It is half the highest mood. At the default, 1, the rows are those of all kept results."""
    rng, prompts = random.Random(3), reviews.all_prompts()
    rows = json.dumps([reviews.pair(prompt, rng) for prompt in prompts[::10]])
    assert hashlib.sha256(rows.encode()).hexdigest().startswith("1044bbb85bba866f8d4f6e565316e14b")
    kinds = reviews.KINDS.values()
    praise, complaints = ({word for kind in kinds for word in kind[i]} for i in (2, 3))
    for highest in (1.0, 0.5, 0.25):
        texts = [reviews.write(PROMPT, rng, highest)[0] for _ in range(2000)]
        words = [word for text in texts for word in reviews.words_of(text)]
        told = [word in praise for word in words if word in praise | complaints]
        assert sum(told) / len(told) == pytest.approx(highest / 2, abs=0.04)
