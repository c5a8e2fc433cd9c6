"""Comparison: finite numbers, each inside its own interval; no run lacks an iteration that another has."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, unique
from data_checks.metrics import numbers, numbers_expectations
from wind.config import ChecksConfig
from wind.schemas import KEYS

KEY = KEYS["comparison"]
RUN = ("recipe", "setting", "seed")


def rows(comparison: Subject) -> pl.DataFrame:
    """One row per number: how far its value is above the lower and below the upper end of its interval."""
    return numbers(comparison.rows(*KEY, "value", "low", "high", "n"), KEY)


def rows_expectations(comparison: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        *numbers_expectations(),
        gxe.ExpectColumnValuesToBeBetween(column="n", min_value=0, description="no negative number of rows is behind a value"),
    ]


def runs(comparison: Subject) -> pl.DataFrame:
    """One row per run: the iterations it has and the last one that any run has."""
    numbers = comparison.rows(*KEY)
    last = numbers["iteration"].max()
    return (
        numbers.group_by(RUN, maintain_order=True)
        .agg(iterations=pl.col("iteration").n_unique(), win_rates=(pl.col("metric") == "win_rate").sum())
        .with_columns(missing=pl.lit(last) + 1 - pl.col("iterations"), unmeasured=pl.col("iterations") - pl.col("win_rates"))
        .select(*RUN, pl.col("missing", "unmeasured").cast(pl.Int64))
    )


def runs_expectations(comparison: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(column="missing", value_set=[0], description="every run has every iteration, from 0 on"),
        gxe.ExpectColumnValuesToBeInSet(column="unmeasured", value_set=[0], description="every iteration has its win rate"),
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("runs", RUN, runs, runs_expectations),
)
