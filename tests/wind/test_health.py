"""Health: every sign by hand, self-BLEU as sacreBLEU has it, and the stage on stored datasets."""

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from sacrebleu.metrics.bleu import BLEU

from wind.errors import DatasetError
from wind.health import DATASET, health
from wind.health.ngrams import repetition, self_bleu
from wind.health.refusals import IS_REFUSAL

WORDS = ("a", "b", "c", "d", "e f", "")


def bleu(responses: list[str], prompts: list[str] | None = None) -> list[float | None]:
    return self_bleu(pl.Series(prompts or ["p"] * len(responses)), pl.Series(responses)).to_list()


def sacrebleu(responses: list[str]) -> list[float]:
    """The BLEU of each response of one prompt against all the others."""
    metric = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True)
    plain = [" ".join(response.split()) for response in responses]
    others = [plain[:index] + plain[index + 1 :] for index in range(len(plain))]
    return [
        metric.sentence_score(response, siblings).score / 100
        for response, siblings in zip(plain, others, strict=True)
    ]


def test_self_bleu_by_hand() -> None:
    # Of a b c d: 1-grams 3 of 4, 2-grams ab bc of 3, 3-grams abc of 2, no 4-gram: 0.1 of 1.
    # Its sibling a b c e has the same, and both have four words.
    expected = (3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 4)
    assert bleu(["a b c d", "a b c e"]) == pytest.approx([expected] * 2)


def test_an_ngram_counts_as_often_as_the_sibling_with_most_of_it() -> None:
    # Of a a a: two of three words are matched by the sibling a a, one of two bigrams, and no
    # trigram: 0.1 of 1. Of a a: all of both orders it has, one word too short for no sibling: the
    # closest is b b.
    three = (2 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 3)
    assert bleu(["a a a", "a a", "b b"]) == pytest.approx([three, 1.0, 0.0])


def test_a_response_shorter_than_its_closest_sibling_is_penalized() -> None:
    # one word, matched, beside three: exp(1 - 3 / 1)
    assert bleu(["a", "a b c"])[0] == pytest.approx(np.exp(-2))


def test_equal_responses_are_wholly_alike_however_short() -> None:
    assert bleu(["12", "12"]) == [1.0, 1.0]
    assert bleu(["1 2 3 4 5", "1 2 3 4 5"]) == pytest.approx([1.0, 1.0])


def test_only_siblings_are_references() -> None:
    prompts = ["p", "q", "p", "q", "r"]
    assert bleu(["x", "x", "y", "x", "x"], prompts) == [0.0, 1.0, 0.0, 1.0, None]


def test_a_response_without_words_is_like_nothing() -> None:
    assert bleu(["", "a", " \n"]) == [None, 0.0, None]
    assert bleu(["", ""]) == [None, None]


def test_self_bleu_is_that_of_sacrebleu() -> None:
    """On 60 prompts of up to 8 random responses, with repeated words, ties and empty ones."""
    generator = random.Random(0)
    prompts, responses, expected = [], [], []
    for prompt in range(60):
        texts = [
            " ".join(generator.choices(WORDS, k=generator.randrange(12)))
            for _ in range(generator.randrange(2, 9))
        ]
        prompts += [f"p{prompt:02d}"] * len(texts)
        responses += texts
        expected += [
            score if text.split() else None
            for text, score in zip(texts, sacrebleu(texts), strict=True)
        ]
    found = bleu(responses, prompts)
    assert [each is None for each in found] == [each is None for each in expected]
    assert [each for each in found if each is not None] == pytest.approx(
        [each for each in expected if each is not None]
    )
    order = generator.sample(range(len(responses)), len(responses))
    shuffled = bleu([responses[row] for row in order], [prompts[row] for row in order])
    assert shuffled == pytest.approx([found[row] for row in order], nan_ok=True)


def test_repetition_by_hand() -> None:
    tokens = pl.Series(
        [
            [7, 7, 7, 7, 7, 7],  # three 4-grams, all the same
            [1, 2, 3, 4, 1, 2, 3, 4],  # five, of which 1 2 3 4 comes back
            [1, 2, 3, 4, 5],
            [7, 7, 7],  # none
            [],
        ],
        dtype=pl.List(pl.Int32),
    )
    assert repetition(tokens).to_list() == pytest.approx([2 / 3, 1 / 5, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("response", "is_refusal"),
    [
        ("I cannot help with that.", True),
        ("  **I'm sorry**, but no.", True),
        ("I\u2019m sorry, but no.", True),
        ('"AS AN AI language model, I', True),
        ("Sorry!", True),
        ("Sure, I cannot wait to help.", False),
        ("", False),
        ("42", False),
    ],
)
def test_refusals_are_known_by_their_opening(response: str, is_refusal: bool) -> None:
    rows = pl.DataFrame({"response": [response]})
    assert rows.select(IS_REFUSAL).item() is is_refusal


def frames() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Generations, log-probabilities of the policy, and those of others, of two prompts."""
    key: dict[str, Any] = {"prompt_id": ["a", "a", "b"], "sample_index": [0, 1, 0]}
    generations = key | {
        "response": ["7 7 7 7 7", " ", "Sorry"],
        # five equal tokens and the stop token, which is no part of what repeats
        "response_token_ids": [[7, 7, 7, 7, 7, 2], [2], [9, 9, 9, 9, 9, 9]],
        "finish_reason": ["stop", "stop", "length"],
        "logp_sampler": [-6.0, -1.0, -3.0],
    }
    logps = key | {"logp_policy": [-5.4, -1.0, -3.3], "response_tokens": [6, 1, 6]}
    others = key | {"logp_previous": [-7.0, -2.0, -3.0], "logp_reference": [-8.0, -1.0, -3.0]}
    return pl.DataFrame(generations), pl.DataFrame(logps), pl.DataFrame(others)


def test_each_sign_by_hand() -> None:
    rows = health(*frames()).to_dict(as_series=False)
    assert [*rows] == DATASET.schema.names
    assert rows["is_empty"] == [False, True, False]
    assert rows["is_refusal"] == [False, False, True]
    assert rows["is_eos"] == [True, True, False]
    assert rows["repetition"] == pytest.approx([1 / 2, 0.0, 2 / 3])
    assert rows["self_bleu"] == [0.0, None, None]
    assert rows["logp_previous"] == [-7.0, -2.0, -3.0]
    assert rows["logp_reference"] == [-8.0, -1.0, -3.0]
    # trainer minus sampler, over the tokens
    assert rows["logp_gap"] == pytest.approx([0.6 / 6, 0.0, -0.3 / 6])


def test_a_response_that_was_not_scored_is_refused() -> None:
    generations, logps, others = frames()
    with pytest.raises(DatasetError, match="3 responses and 2 log-probabilities, and 2 belong"):
        health(generations, logps[1:], others)
    with pytest.raises(DatasetError, match="3 responses and 2 log-probabilities, and 2 belong"):
        health(generations, logps, others[:2])


@pytest.mark.slow
def test_two_hundred_prompts_of_eight_long_responses_take_about_a_second() -> None:
    import time

    generator = np.random.default_rng(0)
    responses = [" ".join(map(str, generator.integers(500, size=200))) for _ in range(1600)]
    started = time.process_time()
    self_bleu(pl.Series(np.repeat(np.arange(200), 8)), pl.Series(responses))
    assert time.process_time() - started < 5
