"""Checks of rates: finite numbers of the study's runs, with standard errors."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, finite, is_finite, is_known, unique, with_parent
from wind.config.checks import ChecksConfig
from wind.store.schemas import KEYS

KEY = KEYS["rates"]
RUN = ("algorithm", "instance")
COUNTED = ("floor", "contraction")  # never negative


def rows(rates: Subject) -> pl.DataFrame:
    """One row per number.

    `size` is its value if it cannot be negative, else null.
    """
    size = pl.when(pl.col("quantity").is_in(COUNTED)).then(pl.col("value"))
    frame = rates.rows(*KEY, "value", "error", "n").select(
        *KEY, finite("value"), pl.col("error").fill_nan(-1), "n", size=size
    )
    return with_parent(frame, rates.parent("bandit").rows(*RUN), RUN)


def rows_expectations(rates: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        is_known("the runs of the study"),
        is_finite("value"),
        gxe.ExpectColumnValuesToBeBetween(
            column="size", min_value=0, description="floors and factors are not negative"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="error", min_value=0, description="a standard error is not negative"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="n", min_value=1, description="numbers stand behind the value"
        ),
    ]


SUITE = (Frame("rows", KEY, rows, rows_expectations),)
