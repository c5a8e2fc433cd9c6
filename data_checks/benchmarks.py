"""Checks of benchmarks: every question under every metric once, each a finite number."""

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
    # null stands for an answer that nobody judged; NaN would pass for one
    value = pl.when(pl.col("value").is_null()).then(0.0).otherwise(finite("value"))
    return frame.select(*KEY, value.alias("value"), is_asked=is_asked)


def rows_expectations(benchmarks: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        is_finite("value"),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_asked", value_set=[True], description="every question has a text"
        ),
    ]


def metrics(benchmarks: Subject) -> pl.DataFrame:
    """One row per benchmark and metric: whether all of the benchmark's questions are measured."""
    counted = benchmarks.rows(*KEY, "value").with_columns(
        questions=pl.col("item").n_unique().over("benchmark")
    )
    is_whole = pl.col("questions").first() == pl.col("item").n_unique()
    is_judged = (pl.col("value").null_count() == 0) | (pl.col("value").null_count() == pl.len())
    return (
        counted.group_by("benchmark", "metric")
        .agg(is_whole=is_whole, is_judged=is_judged)
        .sort("benchmark", "metric")
    )


def metrics_expectations(benchmarks: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="is_whole",
            value_set=[True],
            description="every question is measured under every metric",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_judged",
            value_set=[True],
            description="all answers of a benchmark are judged, or none",
        ),
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("metrics", ("benchmark", "metric"), metrics, metrics_expectations),
)
