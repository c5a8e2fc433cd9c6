"""Checks of metrics: finite numbers of this iteration, each inside its interval."""

from collections.abc import Sequence

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, finite, is_finite, unique
from wind.config.checks import ChecksConfig

KEY = ("iteration", "metric")
# relative: an interval of equal resamples may miss its value by a rounding error
TOLERANCE = 1e-9


def numbers(values: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Measure how far each value is from its interval's ends.

    `above_low` and `below_high` are negative outside of it, and relative to a value above 1.
    """
    value, low, high = pl.col("value"), pl.col("low"), pl.col("high")
    scale = pl.max_horizontal(1.0, value.abs())
    bounded = pl.all_horizontal(
        low.is_null() | low.is_finite(),
        high.is_null() | high.is_finite(),
        low.is_null() == high.is_null(),
    )
    return values.with_columns(
        above_low=(value - low) / scale, below_high=(high - value) / scale, is_interval=bounded
    ).select(*key, finite("value", "above_low", "below_high"), "is_interval", "n")


def numbers_expectations() -> list[Expectation]:
    """Expect finite values inside their intervals, in a frame of `numbers`."""
    return [
        is_finite("value"),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_interval",
            value_set=[True],
            description="an interval has two finite ends or none",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="above_low", min_value=-TOLERANCE, description="low <= value"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="below_high", min_value=-TOLERANCE, description="value <= high"
        ),
    ]


def rows(metrics: Subject) -> pl.DataFrame:
    """One row per metric, with its interval."""
    return numbers(metrics.rows(*KEY, "value", "low", "high", "n"), KEY)


def rows_expectations(metrics: Subject, checks: ChecksConfig) -> list[Expectation]:
    iteration = metrics.setting("iteration")
    return [
        unique(KEY),
        gxe.ExpectColumnValuesToBeInSet(
            column="iteration",
            value_set=[iteration],
            description=f"measured in iteration {iteration}",
        ),
        *numbers_expectations(),
        gxe.ExpectColumnValuesToBeBetween(
            column="n", min_value=1, description="rows stand behind the value"
        ),
    ]


SUITE = (Frame("rows", KEY, rows, rows_expectations),)
