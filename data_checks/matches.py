"""Checks of matches: every response of the policy in every pairing, with numbers in range.

A pairing under gold answers has only the prompts that have one.
"""

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
    is_within_0_and_1,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.matches import DATASET, GOLD

KEY = DATASET.key
PAIRING = ("judge", "opponent")
REWARDS = ("reward_policy", "reward_opponent")
LENGTHS = ("response_tokens_policy", "response_tokens_opponent", "mean_tokens_opponent")
SHARES = ("win_rate", "tie_share", "repeat_difference")


def rows(matches: Subject) -> pl.DataFrame:
    """One row per response of the policy in a pairing, if it is one of the policy's responses."""
    # Null stands for a missing sample of the opponent; NaN would pass for one.
    values = pl.col(*REWARDS[1:], *SHARES[2:]).fill_nan(float("inf"))
    frame = matches.rows(*KEY, *REWARDS, *LENGTHS, *SHARES).select(
        *KEY, finite(REWARDS[0], *SHARES[:2]), values, *LENGTHS
    )
    ours = matches.parent("generations_policy").rows(*GENERATION)
    return with_parent(frame, ours, GENERATION)


def rows_expectations(matches: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(KEY),
        is_known("the policy's responses"),
        *(is_finite(column) for column in (REWARDS[0], *SHARES[:2])),
        gxe.ExpectColumnValuesToBeBetween(
            column="reward_opponent",
            max_value=1e308,
            description="reward_opponent is a finite number or null",
        ),
        is_within_0_and_1("win_rate", "win rates"),
        is_within_0_and_1("tie_share", "tie shares"),
        is_within_0_and_1("repeat_difference", "shares of changed verdicts"),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column, min_value=1, description=f"{column} counts a token or more"
            )
            for column in LENGTHS
        ),
    ]


def pairings(matches: Subject) -> pl.DataFrame:
    """One row per pairing, with the number of its responses that are missing."""
    ours = matches.parent("generations_policy").handle.rows
    counted = matches.rows(*PAIRING).group_by(PAIRING).agg(rows=pl.len()).sort(PAIRING)
    is_partial = pl.col("judge") == GOLD
    return counted.select(
        *PAIRING,
        missing=pl.when(is_partial & (pl.col("rows") <= ours))
        .then(0)
        .otherwise(ours - pl.col("rows")),
    )


def pairings_expectations(matches: Subject, checks: ChecksConfig) -> list[Expectation]:
    judges, opponents = matches.setting("verdicts"), matches.setting("opponents")
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="missing",
            value_set=[0],
            description="every response of the policy is in the pairing",
        ),
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="judge", value_set=sorted(judges), description="every judge has a verdict"
        ),
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="opponent",
            value_set=sorted(opponents),
            description="every opponent has a match",
        ),
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("pairings", PAIRING, pairings, pairings_expectations),
)
