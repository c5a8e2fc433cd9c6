"""Checks of log-probabilities: finite and at most 0 for every generation.

They are sums over exactly the tokens that were sampled.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    Frame,
    Subject,
    finite,
    is_known,
    is_logp,
    no_row_lost,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.quantities import RESPONSE_TOKENS


def rows(logps: Subject) -> pl.DataFrame:
    """One row per response: its log-probabilities and token counts.

    The counts are those of the scored tokens and of the sampled tokens in the generations.
    """
    columns = ("logp_policy", "logp_reference")
    frame = logps.rows(*GENERATION, *columns, "response_tokens").select(
        *GENERATION, finite(*columns), "response_tokens"
    )
    return with_parent(frame, generations_of(logps), GENERATION)


def rows_expectations(logps: Subject, checks: ChecksConfig) -> list[Expectation]:
    same = gxe.ExpectColumnPairValuesToBeEqual(
        column_A="logp_policy",
        column_B="logp_reference",
        ignore_row_if="either_value_is_missing",
        description="the policy is the reference, and so are its log-probabilities",
    )
    return [
        unique(GENERATION),
        is_known("the generations"),
        *is_logp("logp_policy"),
        *is_logp("logp_reference"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="response_tokens",
            column_B="sampled_tokens",
            ignore_row_if="either_value_is_missing",
            description="every sampled token was scored, and no other",
        ),
        *[same] * (logps.input("policy") == logps.input("reference")),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    no_row_lost("generations"),
)


def generations_of(logps: Subject) -> pl.DataFrame:
    """Return the generations, each with its number of tokens."""
    frame = logps.parent("generations").rows(*GENERATION, "response_token_ids")
    return frame.select(*GENERATION, sampled_tokens=RESPONSE_TOKENS)
