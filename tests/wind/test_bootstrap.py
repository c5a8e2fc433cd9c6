"""Bootstrap intervals: they cover what they should as often as they say."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from wind.statistics.bootstrap import (
    estimate,
    generator_for,
    interval,
    multiplicities,
    resamples,
)

DATA_SETS = 500


def win_rates_of_paired_policies(generator: np.random.Generator) -> pl.DataFrame:
    """Win rates of 4 responses to each of 80 prompts, whose difficulty both policies share.

    Their mean is 1/2 + 0.1 in the population: of the prompts half are won with probability 0.9 and
    half with 0.3, and the responses to a prompt are anything but independent.
    """
    chances_P = np.where(generator.random(80) < 0.5, 0.9, 0.3)
    wins_P_N = generator.random((80, 4)) < chances_P[:, None]
    names = np.repeat([f"p{index:02d}" for index in range(80)], 4)
    return pl.DataFrame({"prompt_id": names, "value": wins_P_N.ravel().astype(float)})


def test_a_95_percent_interval_covers_the_truth_95_times_in_100() -> None:
    covered, covered_by_rows = 0, 0
    for number in range(DATA_SETS):
        values = win_rates_of_paired_policies(np.random.default_rng(number))
        _, low, high = estimate(values, 400, generator_for(number, 1, "win_rate"))
        assert low is not None
        assert high is not None
        covered += low <= 0.6 <= high
        mean, error = values["value"].mean(), np.sqrt(0.24 / len(values))
        assert isinstance(mean, float)
        covered_by_rows += abs(mean - 0.6) <= 1.96 * error
    # 0.95 within three standard errors of a share of 500
    assert stats.binom.ppf(0.0013, DATA_SETS, 0.95) <= covered <= DATA_SETS * 0.98
    # an interval that takes responses for independent covers it far less often
    assert covered_by_rows < DATA_SETS * 0.9


def test_multiplicities_count_each_resample_by_itself() -> None:
    counts = multiplicities(np.array([[0, 0, 2], [1, 1, 1]]))
    assert counts.tolist() == [[2, 0, 1], [0, 3, 0]]


def test_resamples_are_the_same_whatever_the_caller_does_with_them() -> None:
    whole, parts = (
        np.concatenate([*resamples(5, 12, generator_for(0, 1, "x"), width)])
        for width in (None, 2**21)
    )
    assert whole.tolist() == parts.tolist()
    assert whole.shape == (12, 5)


def test_an_interval_holds_its_value() -> None:
    assert interval(np.full(10, 0.5), 0.75) == (0.5, 0.75)
    assert interval(np.arange(101, dtype=np.float64), 50.0) == pytest.approx((2.5, 97.5))
