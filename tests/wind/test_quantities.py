"""Derived quantities: formulas by hand, and the same numbers wherever they are shown."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_checks import drift
from data_checks.base import Subject
from tests.wind.audit_case import publish
from wind.audit.diff import shifts
from wind.quantities import (
    IS_TRUNCATED,
    LOG_RATIO,
    TIE_SHARE,
    effect_size,
    floats,
    is_duplicate,
    ks_distance,
    mean_difference,
    tie_share_of_rewards,
)
from wind.store.datasets import Store
from wind.store.handles import Dataset


def array(*values: float) -> Any:
    return np.array(values)


def test_a_mean_moves_in_pooled_standard_deviations() -> None:
    """Means 1 and 4; sums of squares 2 and 8 over 3 + 3 - 2 degrees of freedom: the deviation is
    sqrt(10 / 4).
    """
    assert effect_size(array(0, 1, 2), array(2, 4, 6)) == pytest.approx(3 / np.sqrt(2.5))
    assert effect_size(array(2, 4, 6), array(0, 1, 2)) == pytest.approx(-3 / np.sqrt(2.5))
    assert effect_size(array(1, 1), array(1, 1)) == 0
    assert effect_size(array(1, 1), array(2, 2)) == np.inf
    assert effect_size(array(2), array(1)) == -np.inf


def test_a_dataset_counts_in_the_deviation_by_its_rows() -> None:
    """Ten values of variance 0 and two at a distance of 1 from their mean: sqrt(2 / 10), not
    sqrt((0 + 1) / 2).
    """
    assert effect_size(array(*[0.0] * 10), array(2, 4)) == pytest.approx(3 / np.sqrt(0.2))


def test_a_distribution_moves_by_the_largest_gap_of_the_cumulative_shares() -> None:
    """At 1 three quarters of the first lie below or on, of the second a quarter."""
    assert ks_distance(array(0, 1, 1, 2), array(1, 2, 2, 3)) == 0.5
    assert ks_distance(array(0, 1), array(2, 3)) == 1
    assert ks_distance(array(0, 1), array(1, 0)) == 0


def test_a_difference_has_the_sign_of_the_rise() -> None:
    assert mean_difference(array(1, 2), array(2, 5)) == 2


def test_nulls_are_no_values() -> None:
    assert floats(pl.Series([1, None, 3])).tolist() == [1.0, 3.0]


def test_shares_and_ratios_by_hand() -> None:
    rows = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "a", "b"],
            "response": ["x", "y", "x", "x"],
            "finish_reason": ["length", "stop", "stop", "stop"],
            "reward": [1.0, 2.0, 1.0, 1.0],
            "wins": [0, 2, 0, 0],
            "ties": [1, 0, 1, 3],
            "losses": [1, 0, 1, 0],
            "logp_policy": [-1.0, -2.0, -3.0, -4.0],
            "logp_reference": [-1.5, -1.0, -3.0, -8.0],
        }
    )
    found = rows.select(
        is_truncated=IS_TRUNCATED,
        is_duplicate=is_duplicate("prompt_id"),
        tie_share=TIE_SHARE,
        of_rewards=tie_share_of_rewards("prompt_id"),
        log_ratio=LOG_RATIO,
    )
    assert found["is_truncated"].to_list() == [True, False, False, False]
    # the same text answers another prompt, which is no duplicate
    assert found["is_duplicate"].to_list() == [False, False, True, False]
    assert found["tie_share"].to_list() == [0.5, 0.0, 0.5, 1.0]
    assert found["of_rewards"][:3].to_list() == [0.5, 0.0, 0.5]
    assert np.isnan(found["of_rewards"][3])
    assert found["log_ratio"].to_list() == [0.5, -1.0, 0.0, 4.0]


def rewards(store: Store, values: list[float]) -> Dataset:
    columns = {
        "prompt_id": [f"p{index // 2}" for index in range(len(values))],
        "sample_index": [index % 2 for index in range(len(values))],
        "reward": values,
    }
    return publish(store, "rewards", columns)[0]


def test_diff_and_drift_say_the_same_of_unequal_datasets(tmp_path: Path) -> None:
    """Four rewards 0 0 1 1: mean 1/2, sum of squares 1. Six rewards 1 1 1 1 1 7: mean 2, sum of
    squares 30. The deviation is sqrt(31 / 8). At 0 half of the first lie below or on, and none of
    the second.
    """
    store = Store(tmp_path)
    before = rewards(store, [0.0, 0.0, 1.0, 1.0])
    after = rewards(store, [1.0, 1.0, 1.0, 1.0, 1.0, 7.0])
    (shift,) = shifts(store, before, after)
    moved = drift.shifts(Subject.of(after, store), Subject.of(before, store))
    drifted = {row["quantity"]: row for row in moved.to_dicts()}
    assert shift.effect == drifted["mean_reward"]["shift"] == pytest.approx(1.5 / (31 / 8) ** 0.5)
    assert shift.statistic == drifted["reward_distribution"]["shift"] == 0.5
    for row in drifted.values():
        assert (row["previous"], row["current"]) == (shift.before, shift.after) == (0.5, 2.0)
