"""Win rates: in [0, 1], one half on average over a prompt's N, made of N-1 comparisons, best where
the reward is highest.

The identities of a prompt are judged only where its N rows are all there: a lost row is one fault,
not four.
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
    is_present,
    known,
    present,
    unique,
)
from wind.config.checks import ChecksConfig
from wind.quantities import TIE_SHARE

TOLERANCE = 1e-9  # of a mean of N win rates in float64


def rows(win_rates: Subject) -> pl.DataFrame:
    """One row per response: its win rate and how many of its siblings it was compared with."""
    parent = rewards_of(win_rates)
    frame = win_rates.rows(*GENERATION, "win_rate", "wins", "ties", "losses").select(
        *GENERATION,
        finite("win_rate"),
        tie_share=TIE_SHARE,
        comparisons=pl.sum_horizontal("wins", "ties", "losses"),
    )
    return known(frame, parent, GENERATION).with_columns(siblings=pl.col("samples") - 1)


def rows_expectations(win_rates: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        unique(GENERATION),
        is_known("the rewards"),
        is_finite("win_rate"),
        gxe.ExpectColumnValuesToBeBetween(
            column="win_rate", min_value=0, max_value=1, description="win rates lie in [0, 1]"
        ),
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


def rewards(win_rates: Subject) -> pl.DataFrame:
    """One row per reward: whether it has a win rate."""
    return present(rewards_of(win_rates), win_rates.rows(*GENERATION), GENERATION)


def rewards_expectations(win_rates: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [is_present("the rewards")]


def prompts(win_rates: Subject) -> pl.DataFrame:
    """One row per prompt whose rows are all there, once each."""
    frame = known(
        win_rates.rows(*GENERATION, "win_rate", "rank"), rewards_of(win_rates), GENERATION
    )
    rank, best = pl.col("rank"), pl.col("rank") == 1
    return (
        frame.group_by("prompt_id", maintain_order=True)
        .agg(
            pl.col("win_rate").mean().alias("mean_win_rate"),
            is_ranked=(rank.n_unique() == pl.len()) & (rank.min() == 1) & (rank.max() == pl.len()),
            best_reward_gap=pl.col("reward").max() - pl.col("reward").filter(best).min(),
            best_win_rate_gap=pl.col("win_rate").max() - pl.col("win_rate").filter(best).min(),
            is_whole=(pl.col("sample_index").n_unique() == pl.len())
            & (pl.len() == pl.col("samples").max()),
        )
        .filter("is_whole")
        .with_columns(finite("mean_win_rate", "best_reward_gap", "best_win_rate_gap"))
    )


def prompts_expectations(win_rates: Subject, checks: ChecksConfig) -> list[Expectation]:
    # The win rate of preferences is a sum of fractions, which ranks it up to a rounding; of
    # rewards, a count.
    rounding = TOLERANCE if "preferences" in win_rates.parent("rewards").columns() else 0
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="mean_win_rate",
            min_value=0.5 - TOLERANCE,
            max_value=0.5 + TOLERANCE,
            description="the win rates of a prompt average one half",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_ranked", value_set=[True], description="the ranks of a prompt are 1 .. N"
        ),
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
    Frame("rewards", GENERATION, rewards, rewards_expectations, by_prompt=True),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations, by_prompt=True),
)


def rewards_of(win_rates: Subject) -> pl.DataFrame:
    """The rewards, each with the number of samples of its prompt."""
    frame = win_rates.parent("rewards").rows(*GENERATION, "reward")
    return frame.with_columns(
        samples=pl.col("sample_index").n_unique().over("prompt_id").cast(pl.Int64)
    )
