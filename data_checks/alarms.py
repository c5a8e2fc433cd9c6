"""Checks of alarms: p-values that decide what is raised, each with a sentence."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, finite, is_finite, is_within_0_and_1, unique
from wind.alarms import DATASET
from wind.config.checks import ChecksConfig

KEY = DATASET.key


def rows(alarms: Subject) -> pl.DataFrame:
    """One row per test."""
    frame = alarms.rows(*KEY, "statistic", "p_value", "threshold", "is_raised", "message")
    return frame.select(
        *KEY,
        finite("statistic", "p_value"),
        "threshold",
        is_decided=pl.col("is_raised") == (pl.col("p_value") <= pl.col("threshold")),
        is_said=pl.col("message").str.len_chars() > 0,
    )


def rows_expectations(alarms: Subject, checks: ChecksConfig) -> list[Expectation]:
    level = alarms.setting("alarms")["level"]
    return [
        unique(KEY),
        is_finite("statistic"),
        is_finite("p_value"),
        is_within_0_and_1("p_value", "p-values"),
        gxe.ExpectColumnValuesToBeInSet(
            column="threshold", value_set=[level], description=f"the level is {level}"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_decided",
            value_set=[True],
            description="an alarm is raised if its p-value is at most the level",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_said", value_set=[True], description="every test has a sentence"
        ),
    ]


SUITE = (Frame("rows", KEY, rows, rows_expectations),)
