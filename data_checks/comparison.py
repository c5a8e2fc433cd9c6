"""Checks of a comparison: finite numbers inside their intervals, and complete runs."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, unique
from data_checks.metrics import numbers, numbers_expectations
from wind.config.checks import ChecksConfig
from wind.store.schemas import KEYS

KEY = KEYS["comparison"]
RUN = ("recipe", "setting", "seed")


def rows(comparison: Subject) -> pl.DataFrame:
    """One row per number, with its distances from its interval's ends."""
    return numbers(comparison.rows(*KEY, "value", "low", "high", "n"), KEY)


def rows_expectations(comparison: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        *numbers_expectations(),
        gxe.ExpectColumnValuesToBeBetween(
            column="n", min_value=0, description="no negative number of rows is behind a value"
        ),
    ]


def runs(comparison: Subject) -> pl.DataFrame:
    """One row per run: its missing iterations, and those without win rate."""
    iteration, is_win_rate = pl.col("iteration"), pl.col("metric") == "win_rate"
    return (
        comparison.rows(*KEY)
        .group_by(RUN, maintain_order=True)
        .agg(
            missing=iteration.max().cast(pl.Int64) + 1 - iteration.n_unique().cast(pl.Int64),
            unmeasured=iteration.n_unique().cast(pl.Int64) - is_win_rate.sum().cast(pl.Int64),
        )
    )


def runs_expectations(comparison: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="missing",
            value_set=[0],
            description="no iteration of a run is missing, from 0 on",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="unmeasured", value_set=[0], description="every iteration has its win rate"
        ),
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("runs", RUN, runs, runs_expectations),
)
