"""Win rates: from the rewards of a prompt's N responses to how often each beats one drawn from the same policy.

One row is one response against its N-1 siblings. Ties count one half, which keeps the mean over a prompt at exactly 1/2 and the
preference constant-sum (MATH 0.1, convention 1). Everything is ranks within the prompt, so the cost is that of a sort, not N x N.
"""

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.config import WinRateConfig
from wind.datasets import Dataset, Store, label
from wind.errors import InputError
from wind.schemas import SCHEMAS
from wind.stages import Place, Progress, Shard, Spec, Stage, main

KEY = ("prompt_id", "sample_index")


class WinRatesSpec(Spec):
    """The rewards to compare and the estimator."""

    rewards: Dataset
    win_rate: WinRateConfig


def win_rates(rewards: pl.DataFrame, config: WinRateConfig) -> pl.DataFrame:
    """The win_rates rows of `rewards` (prompt_id, sample_index, reward), sorted by key.

    With W siblings beaten and T tied of N-1: `unbiased` is the leave-one-out U-statistic (W + T/2) / (N-1), `self_counting` is
    SPPO's V-statistic (W + T/2 + 1/2) / N (arXiv 2405.00675, App. A), which shrinks the centred U by (N-1)/N (MATH 0.2).
    Raises InputError for a NaN reward and for a prompt with a single response.
    """
    _refuse(rewards.filter(pl.col("reward").is_nan()), "has the reward NaN, which cannot be compared: fix the reward")
    _refuse(
        rewards.filter(pl.len().over("prompt_id") == 1),
        "is its prompt's only one, with no sibling to win against: sample two or more",
    )
    half_wins = pl.col("wins") + pl.col("ties") / 2  # ties count half: the mean over a prompt stays 1/2
    siblings = pl.col("wins") + pl.col("ties") + pl.col("losses")
    estimators = {"unbiased": half_wins / siblings, "self_counting": (half_wins + 0.5) / (siblings + 1)}
    return (
        rewards.sort(KEY)
        .with_columns(
            wins=_smaller("reward"),
            ties=_not_larger("reward") - _smaller("reward") - 1,
            losses=pl.len().over("prompt_id") - _not_larger("reward"),
            rank=pl.col("reward").rank("ordinal", descending=True).over("prompt_id"),  # equal rewards: first sample first
        )
        .with_columns(win_rate=estimators[config.estimator])
        .select(SCHEMAS["win_rates"].names)
    )


def win_rates_against(rewards: pl.DataFrame, opponents: pl.DataFrame) -> pl.DataFrame:
    """The win rate of each row of `rewards` against all of its prompt's `opponents`, ties one half (MATH 7), and the share tied.

    Both frames have prompt_id, sample_index, reward; M and L rows per prompt. Returns key, win_rate and tie_share, sorted by key:
    (W + T/2) / L and T / L. Counting in the union and taking away the own side avoids the M x L comparison.
    Raises InputError for a NaN reward and for a prompt without opponents.
    """
    columns = ["prompt_id", "sample_index", "reward"]
    union = pl.concat(
        [rewards.select(columns).with_columns(is_own=True), opponents.select(columns).with_columns(is_own=False)],
        how="vertical_relaxed",
    )
    _refuse(union.filter(pl.col("reward").is_nan()), "has the reward NaN, which cannot be compared: fix the reward")
    counted = (
        union.sort(*KEY, "is_own")
        .with_columns(
            smaller=_smaller("reward") - _smaller("reward", "is_own"),
            not_larger=_not_larger("reward") - _not_larger("reward", "is_own"),
            opponents=pl.len().over("prompt_id") - pl.len().over("prompt_id", "is_own"),
        )
        .filter("is_own")
    )
    _refuse(counted.filter(pl.col("opponents") == 0), "has no response of the reference to be compared with")
    return counted.select(
        *KEY,
        win_rate=(pl.col("smaller") + pl.col("not_larger")) / (2 * pl.col("opponents")),  # W + T/2 = (W + (W + T)) / 2
        tie_share=(pl.col("not_larger") - pl.col("smaller")) / pl.col("opponents"),
    )


def _smaller(reward: str, *within: str) -> pl.Expr:
    """How many rows of the prompt (and of the same `within`) have a smaller reward."""
    return pl.col(reward).rank("min").over("prompt_id", *within).cast(pl.Int64) - 1


def _not_larger(reward: str, *within: str) -> pl.Expr:
    """How many rows of the prompt (and of the same `within`) have a smaller or equal reward, the row itself counted."""
    return pl.col(reward).rank("max").over("prompt_id", *within).cast(pl.Int64)


def _refuse(rows: pl.DataFrame, what: str) -> None:
    if len(rows):
        prompt_id, sample_index = rows.select(KEY).row(0)
        more = f" ({len(rows) - 1} more rows like this)" if len(rows) > 1 else ""
        raise InputError(f"prompt {prompt_id}, sample {sample_index} {what}{more}")


def _shards(spec: WinRatesSpec, store: Store) -> int:
    return len(store.manifest(spec.rewards).files)


def _compute(spec: WinRatesSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    rewards = store.frame(spec.rewards, [*KEY, "reward"], shard=index)
    try:
        rows = win_rates(rewards, spec.win_rate)
    except InputError as error:
        raise InputError(f"{label(spec.rewards)}: {error}") from error
    progress(len(rows), len(rows))
    return Shard(rows.to_arrow())


def _numbers(spec: WinRatesSpec, table: pa.Table) -> dict[str, float]:
    """The share of comparisons that tie, and the mean win rate (1/2, or something is wrong)."""
    ties, decided = pc.sum(table["ties"]).as_py(), pc.sum(pc.add(table["wins"], table["losses"])).as_py()
    return {"tie_share": ties / (ties + decided), "mean_win_rate": pc.mean(table["win_rate"]).as_py()}


STAGE = Stage(name="win_rates", spec=WinRatesSpec, shards=_shards, compute=_compute, numbers=_numbers)

if __name__ == "__main__":
    main("win_rates")
