"""Checks of health: one row per held-out response, every number finite and in its range."""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    Frame,
    Subject,
    finite,
    is_finite,
    is_known,
    is_logp,
    is_within_0_and_1,
    no_row_lost,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.quantities import IS_TRUNCATED

LOGPS = ("logp_previous", "logp_reference")


def rows(health: Subject) -> pl.DataFrame:
    """One row per response, with how the generations say it ended."""
    # Null stands for a response without words or siblings; NaN would pass for one.
    self_bleu = pl.col("self_bleu").fill_nan(-1)
    frame = health.rows(
        *GENERATION, *LOGPS, "logp_gap", "repetition", "self_bleu", "is_eos"
    ).select(*GENERATION, finite(*LOGPS, "logp_gap", "repetition"), self_bleu, "is_eos")
    ended = health.parent("generations").rows(*GENERATION, "finish_reason")
    return with_parent(frame, ended.select(*GENERATION, is_stopped=~IS_TRUNCATED), GENERATION)


def rows_expectations(health: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(GENERATION),
        is_known("the generations"),
        *(expectation for column in LOGPS for expectation in is_logp(column)),
        is_finite("logp_gap"),
        is_finite("repetition"),
        is_within_0_and_1("repetition", "shares of repeated 4-grams"),
        is_within_0_and_1("self_bleu", "BLEU scores"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="is_eos",
            column_B="is_stopped",
            ignore_row_if="either_value_is_missing",
            description="is_eos says how the response ended",
        ),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    no_row_lost("generations"),
)
