"""Checks of benchmarks: every question under every metric once, each a finite number.

Of a benchmark with a limit, no more questions than that.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, finite, is_finite, unique
from wind.config.checks import ChecksConfig

KEY = ("benchmark", "item", "metric")


def rows(benchmarks: Subject) -> pl.DataFrame:
    """One row per question and metric, with its value and whether there is a question."""
    is_asked = pl.col("question").str.strip_chars() != ""
    frame = benchmarks.rows(*KEY, "value", "question")
    return frame.select(*KEY, finite("value"), is_asked=is_asked)


def rows_expectations(benchmarks: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        is_finite("value"),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_asked", value_set=[True], description="every question has a text"
        ),
    ]


def metrics(benchmarks: Subject) -> pl.DataFrame:
    """One row per benchmark and metric, with its number of questions beside the benchmark's."""
    counted = benchmarks.rows(*KEY).with_columns(
        questions=pl.col("item").n_unique().over("benchmark")
    )
    return (
        counted.group_by("benchmark", "metric")
        .agg(pl.col("questions").first(), measured=pl.col("item").n_unique())
        .sort("benchmark", "metric")
        .with_columns(is_whole=pl.col("questions") == pl.col("measured"))
    )


def metrics_expectations(benchmarks: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="is_whole",
            value_set=[True],
            description="every question is measured under every metric",
        )
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("metrics", ("benchmark", "metric"), metrics, metrics_expectations),
)
