"""Checks of win rates: ranges, counts, means and ranks.

A win rate lies in [0, 1] and is made of N-1 comparisons; the N of a prompt average one half, and
the highest belongs to the highest reward. A prompt is judged as a whole only if its N rows are all
there, so a lost row is one fault and not four.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    IS_RANKED,
    IS_WHOLE,
    TOLERANCE,
    Frame,
    Subject,
    averages_one_half,
    finite,
    is_finite,
    is_known,
    is_ranked,
    is_within_0_and_1,
    no_row_lost,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.quantities import TIE_SHARE


def rows(win_rates: Subject) -> pl.DataFrame:
    """One row per response: its win rate, comparisons and siblings."""
    parent = rewards_of(win_rates)
    frame = win_rates.rows(*GENERATION, "win_rate", "wins", "ties", "losses").select(
        *GENERATION,
        finite("win_rate"),
        tie_share=TIE_SHARE,
        comparisons=pl.sum_horizontal("wins", "ties", "losses"),
    )
    return with_parent(frame, parent, GENERATION).with_columns(siblings=pl.col("samples") - 1)


def rows_expectations(win_rates: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(GENERATION),
        is_known("the rewards"),
        is_finite("win_rate"),
        is_within_0_and_1("win_rate", "win rates"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="comparisons",
            column_B="siblings",
            ignore_row_if="either_value_is_missing",
            description="wins + ties + losses = N - 1",
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="tie_share",
            max_value=checks.max_tie_share,
            description=f"at most {checks.max_tie_share:.1%} of comparisons are ties",
        ),
    ]


def prompts(win_rates: Subject) -> pl.DataFrame:
    """One row per prompt whose rows are all there, once each."""
    frame = with_parent(
        win_rates.rows(*GENERATION, "win_rate", "rank"), rewards_of(win_rates), GENERATION
    )
    best = pl.col("rank") == 1
    return (
        frame.group_by("prompt_id", maintain_order=True)
        .agg(
            pl.col("win_rate").mean().alias("mean_win_rate"),
            is_ranked=IS_RANKED,
            best_reward_gap=pl.col("reward").max() - pl.col("reward").filter(best).min(),
            best_win_rate_gap=pl.col("win_rate").max() - pl.col("win_rate").filter(best).min(),
            is_whole=IS_WHOLE,
        )
        .filter("is_whole")
        .with_columns(finite("mean_win_rate", "best_reward_gap", "best_win_rate_gap"))
    )


def prompts_expectations(win_rates: Subject, checks: ChecksConfig) -> list[Expectation]:
    # Preferences give win rates that are sums of fractions, and ranks up to a rounding error;
    # scalar rewards give counts.
    rounding = TOLERANCE if "preferences" in win_rates.parent("rewards").columns() else 0
    return [
        averages_one_half("prompt"),
        is_ranked("prompt"),
        gxe.ExpectColumnValuesToBeBetween(
            column="best_reward_gap",
            max_value=rounding,
            description="rank 1 has the highest reward",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="best_win_rate_gap",
            max_value=rounding,
            description="rank 1 has the highest win rate",
        ),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations, by_prompt=True),
    no_row_lost("rewards", by_prompt=True),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations, by_prompt=True),
)


def rewards_of(win_rates: Subject) -> pl.DataFrame:
    """Return the rewards, each with the number of its prompt's samples."""
    frame = win_rates.parent("rewards").rows(*GENERATION, "reward")
    return frame.with_columns(
        samples=pl.col("sample_index").n_unique().over("prompt_id").cast(pl.Int64)
    )
