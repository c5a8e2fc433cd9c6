"""Checks of log-probabilities: finite and at most 0 for every generation.

They are sums over exactly the tokens that were sampled, and near what the sampler saw.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

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
from wind.quantities import LOGP_GAP, RESPONSE_TOKENS


def rows(logps: Subject) -> pl.DataFrame:
    """One row per response: its log-probabilities and token counts.

    The counts are those of the scored tokens and of the sampled tokens in the generations.
    `logp_gap` is how far, per token, the trainer's log-probability is from the sampler's.
    """
    columns = ("logp_policy", "logp_reference")
    frame = logps.rows(*GENERATION, *columns, "response_tokens").select(
        *GENERATION, finite(*columns), "response_tokens"
    )
    gap = LOGP_GAP.abs().alias("logp_gap")
    paired = with_parent(frame, generations_of(logps), GENERATION)
    return paired.with_columns(gap).with_columns(finite("logp_gap"))


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
        *(_near_the_sampler(checks) if _is_of_the_sampler(logps) else []),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    no_row_lost("generations"),
)


def generations_of(logps: Subject) -> pl.DataFrame:
    """Return the generations, each with its number of tokens."""
    columns = ("response_token_ids", "logp_sampler")
    frame = logps.parent("generations").rows(*GENERATION, *columns)
    return frame.select(*GENERATION, finite("logp_sampler"), sampled_tokens=RESPONSE_TOKENS)


def _is_of_the_sampler(logps: Subject) -> bool:
    """Return whether the responses are scored under the policy that they were sampled from."""
    return logps.input("policy") == logps.parent("generations").input("policy")


def _near_the_sampler(checks: ChecksConfig) -> list[Expectation]:
    """Expect that sampler and trainer agree on the same tokens, on average.

    A mismatch of dtype, kernel, template or weights makes every log-ratio of the objective wrong.
    """
    bounds = (
        (FailureSeverity.CRITICAL, checks.logp_gap.fail),
        (FailureSeverity.WARNING, checks.logp_gap.warn),
    )
    return [
        gxe.ExpectColumnMeanToBeBetween(
            column="logp_gap",
            max_value=bound,
            severity=severity,
            description=(
                f"the trainer's log-probabilities are within {bound:g} nats per token of the "
                "sampler's on average"
            ),
        )
        for severity, bound in bounds
        if bound is not None
    ]
