"""Checks of training: finite numbers and a loss at every optimizer step."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, finite, is_finite, unique
from wind.config.checks import ChecksConfig

KEY = ("step", "metric")


def rows(training: Subject) -> pl.DataFrame:
    """One row per number of a step."""
    return training.rows(*KEY, "value").select(*KEY, finite("value"))


def rows_expectations(training: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [unique(KEY), is_finite("value")]


def steps(training: Subject) -> pl.DataFrame:
    """One row per step from the first to the last.

    `has_loss` is true if its loss was recorded.
    """
    frame = training.rows(*KEY)
    losses = (
        frame.filter(pl.col("metric") == "loss").select("step").unique().with_columns(has_loss=True)
    )
    every = frame.select(
        pl.int_range(pl.col("step").min(), pl.col("step").max() + 1, dtype=pl.Int32).alias("step")
    )
    return every.join(losses, on="step", how="left", maintain_order="left").with_columns(
        pl.col("has_loss").fill_null(False)
    )


def steps_expectations(training: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="has_loss", value_set=[True], description="every step has a loss"
        )
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("steps", ("step",), steps, steps_expectations),
)
