"""Paired differences: by hand, their sign, and how often their intervals hold the truth."""

import numpy as np
import polars as pl
import pytest

from wind.audit.paired import joined, paired


def side(**prompts: list[float]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"prompt_id": name, "value": value}
            for name, values in prompts.items()
            for value in values
        ],
        schema={"prompt_id": pl.String, "value": pl.Float64},
    )


def test_by_hand_on_shared_prompts_alone() -> None:
    # means 0.5, 1 and 2 before; 1, 0 and nothing after, where d was not asked before
    before = side(a=[0, 1], b=[1, 1], c=[2])
    after = side(a=[1], b=[0], d=[9, 9])
    found = paired("win_rate", before, after)
    assert found is not None
    assert found.prompts == 2
    assert found.difference == pytest.approx((0.5 - 1) / 2)  # after minus before
    assert found.low == -1
    assert found.high == 0.5
    assert joined(before, after).to_dicts() == [
        {"prompt_id": "a", "before": 0.5, "after": 1.0},
        {"prompt_id": "b", "before": 1.0, "after": 0.0},
    ]


def test_nothing_shared_is_no_difference_and_one_prompt_has_no_interval() -> None:
    assert paired("reward", side(a=[1]), side(b=[1])) is None
    found = paired("reward", side(a=[1]), side(a=[4]))
    assert found is not None
    assert (found.difference, found.low, found.high) == (3, None, None)


def test_intervals_hold_the_truth_and_are_shorter_than_those_of_unrelated_prompts() -> None:
    generator = np.random.default_rng(3)
    held, trials, prompts = 0, 200, 60
    widths = []
    for _ in range(trials):
        difficulty = generator.normal(0, 3, prompts)  # what both sides share
        before, after = (
            difficulty + shift + generator.normal(0, 0.5, prompts) for shift in (0, 0.2)
        )
        names = [f"{index:03}" for index in range(prompts)]
        sides = [pl.DataFrame({"prompt_id": names, "value": side}) for side in (before, after)]
        found = paired("reward", *sides)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.2 <= found.high
        widths.append(found.high - found.low)
    # 95% of 200, give or take three standard errors
    assert 0.90 < held / trials <= 1
    # side by side: 2 * 1.96 * sqrt(2 * (9 + 0.25) / 60), five times as long
    assert np.mean(widths) < 0.2 * 2 * 1.96 * np.sqrt(2 * 9.25 / prompts) * 1.2
