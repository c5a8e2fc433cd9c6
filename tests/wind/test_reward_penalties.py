"""Penalties for length and repetition: their values by hand, and what counts as long."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wind.config.models import InferenceConfig
from wind.config.rewards import OverlongRewardConfig, RepetitionRewardConfig
from wind.rewards import resolve_reward
from wind.rewards.functions import Responses
from wind.rewards.penalties import overlong, repetition
from wind.store.datasets import Store


def rows(responses: list[str], token_ids: list[list[int]], truncated: list[bool]) -> Responses:
    count = len(responses)
    asked = [[{"role": "user", "content": "?"}]] * count
    return Responses(
        ["a"] * count,
        list(range(count)),
        asked,
        responses,
        [None] * count,
        token_ids=token_ids,
        is_truncated=truncated,
    )


def rewards(store: Store, config: Any, judged: Responses) -> list[float]:
    judge = resolve_reward(store, config).judge(store, InferenceConfig(), "cpu", None)
    return list(judge(judged, None, lambda done, total: None)["reward"])


def test_the_overlong_punishment_at_its_knees() -> None:
    """DAPO's own numbers: 16384 tokens are expected, 4096 more are the cache."""
    tokens_B = np.array([1, 16383, 16384, 16385, 18432, 20479, 20480, 20481, 10**6])
    expected = [0, 0, 0, -1 / 4096, -1 / 2, -4095 / 4096, -1, -1, -1]
    assert overlong(tokens_B, max_tokens=20480, cache_tokens=4096).tolist() == expected
    # without a part that is free, every token counts
    assert overlong(np.array([1, 4]), max_tokens=4, cache_tokens=4).tolist() == [-0.25, -1]


def test_a_truncated_response_counts_as_the_longest(store: Store) -> None:
    judged = rows(
        ["", "", "", ""], [[7] * length for length in (6, 8, 10, 6)], [False, False, False, True]
    )
    config = OverlongRewardConfig(kind="overlong", max_tokens=10, cache_tokens=4)
    assert rewards(store, config, judged) == [0, -0.5, -1, -1]


@pytest.mark.parametrize(
    ("units", "n", "expected"),
    [
        ("the cat sat", 2, 0.0),
        # the cat, cat the, the cat: 2 of 3 differ
        ("the cat the cat", 2, -1 / 3),
        # a a a, three times
        ("a a a a a", 3, -2 / 3),
        ("a a a a a", 1, -4 / 5),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
    ],
)
def test_the_share_of_repeated_n_grams(units: str, n: int, expected: float) -> None:
    assert repetition(units.split(), n) == pytest.approx(expected, abs=1e-15)


def test_repetition_of_words_and_of_tokens(store: Store) -> None:
    judged = rows(["The cat the\nCat", "x"], [[1, 2, 3, 4], [5, 5, 5]], [False, False])
    words = RepetitionRewardConfig(kind="repetition", n=2)
    assert rewards(store, words, judged) == pytest.approx([-1 / 3, 0])
    tokens = RepetitionRewardConfig(kind="repetition", n=2, unit="tokens")
    assert rewards(store, tokens, judged) == pytest.approx([0, -1 / 2])


def test_only_what_counts_tokens_reads_them(store: Store, tmp_path: Path) -> None:
    configs: dict[str, Any] = {
        "overlong": OverlongRewardConfig(kind="overlong", max_tokens=4, cache_tokens=4),
        "words": RepetitionRewardConfig(kind="repetition"),
        "tokens": RepetitionRewardConfig(kind="repetition", unit="tokens"),
    }
    reads = {name: resolve_reward(store, config).reads_tokens for name, config in configs.items()}
    assert reads == {"overlong": True, "words": False, "tokens": True}
