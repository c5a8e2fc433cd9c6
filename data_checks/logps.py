"""Log-probabilities: finite and at most 0 for every generation, summed over exactly the tokens that
were sampled.
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
    is_present,
    known,
    present,
    unique,
)
from wind.config.checks import ChecksConfig
from wind.quantities import RESPONSE_TOKENS


def rows(logps: Subject) -> pl.DataFrame:
    """One row per response: its log-probabilities, its tokens here and in the generations."""
    columns = ("logp_policy", "logp_reference")
    frame = logps.rows(*GENERATION, *columns, "response_tokens").select(
        *GENERATION, finite(*columns), "response_tokens"
    )
    return known(frame, generations_of(logps), GENERATION)


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


def generations(logps: Subject) -> pl.DataFrame:
    """One row per generation: whether it has log-probabilities."""
    return present(generations_of(logps), logps.rows(*GENERATION), GENERATION)


def generations_expectations(logps: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [is_present("the generations")]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("generations", GENERATION, generations, generations_expectations),
)


def generations_of(logps: Subject) -> pl.DataFrame:
    """The generations and how many tokens each has."""
    frame = logps.parent("generations").rows(*GENERATION, "response_token_ids")
    return frame.select(*GENERATION, sampled_tokens=RESPONSE_TOKENS)
