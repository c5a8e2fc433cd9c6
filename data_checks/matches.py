"""Checks of matches: every response of the policy in every pairing, with numbers in range.

A pairing under gold answers has only the prompts that have one.
"""

from itertools import product

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
    """One row per pairing, with the number of its responses that are missing.

    It is negative for a pairing that was not asked for.
    """
    ours = matches.parent("generations_policy").handle.rows
    asked = pl.DataFrame(
        product(matches.setting("verdicts"), matches.setting("opponents")),
        schema=dict.fromkeys(PAIRING, pl.String),
        orient="row",
    )
    found = matches.rows(*PAIRING).group_by(PAIRING).agg(rows=pl.len().cast(pl.Int64))
    rows = pl.col("rows").fill_null(0)
    of_gold = pl.when(pl.col("judge") == GOLD).then(pl.min_horizontal(rows, ours))
    return (
        asked.with_columns(asked=ours)
        .join(found, on=PAIRING, how="full", coalesce=True)
        .sort(PAIRING)
        .select(*PAIRING, missing=of_gold.otherwise(pl.col("asked").fill_null(0)) - rows)
    )


def pairings_expectations(matches: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="missing",
            value_set=[0],
            description="every response of the policy is in every pairing",
        )
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("pairings", PAIRING, pairings, pairings_expectations),
)
