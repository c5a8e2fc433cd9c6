"""Win rates: how often each response beats its siblings.

One row is one response against its N-1 siblings, drawn for the same prompt from the same policy.
Ties count one half, which keeps the mean over a prompt at exactly 1/2 and the preference
constant-sum (MATH 0.1, convention 1). With rewards everything is ranks within the prompt, so the
cost is that of a sort, not N x N. With preferences the N x N matrix is already there and need not
be transitive: a cycle is no error, and its members may well end up with the same win rate.
"""

from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.config.rewards import WinRateConfig
from wind.errors import InputError
from wind.stages import (
    Place,
    Progress,
    Role,
    Shard,
    Spec,
    Stage,
    as_many_as,
    light,
    no_function,
    one_side,
)
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.schemas import PROMPT_ID, SAMPLE, SAMPLE_INDEX, Column, Declaration, ForeignKey

DATASET = Declaration(
    row="one response against its N-1 siblings",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("win_rate", pa.float64(), "[0, 1], mean 1/2 over the N of a prompt"),
        Column(
            "wins",
            pa.int32(),
            "siblings with a lower reward; of preferences: beaten with a probability above 1/2",
        ),
        Column("ties", pa.int32(), "siblings with an equal reward, itself not counted"),
        Column("losses", pa.int32(), "the other siblings"),
        Column(
            "rank",
            pa.int32(),
            "1 is best; equal rewards, or win rates of preferences, are ordered by sample_index",
        ),
    ),
    key=SAMPLE,
    foreign_keys=(ForeignKey(SAMPLE, "rewards", is_one_to_one=True),),
)
KEY = DATASET.key
# to which win rates of preferences are compared: sums of other terms may differ by rounding
DECIMALS = 12


class WinRatesSpec(Spec):
    """The rewards to compare and the estimator."""

    rewards: Dataset
    win_rate: WinRateConfig


def win_rates(rewards: pl.DataFrame, config: WinRateConfig) -> pl.DataFrame:
    """Return the win_rates rows of `rewards`, sorted by key.

    `rewards` has prompt_id, sample_index and reward; those of a pairwise reward also preferences.
    With W siblings beaten and T tied of N-1, the estimator `unbiased` of `config` is the
    leave-one-out U-statistic (W + T/2) / (N-1), and `self_counting` is SPPO's V-statistic
    (W + T/2 + 1/2) / N (arXiv 2405.00675, App. A), which shrinks the centered U by (N-1)/N (MATH
    0.2). With preferences P_ij they are the sum of P_ij over j other than i divided by N-1, and
    over all j divided by N (MATH 2.8, 4.1); wins, ties and losses then count P_ij above, at and
    below 1/2, and the rank is that of the win rate.

    Raises InputError for a NaN, for a prompt with a single response, and for rows whose preferences
    are not one per response to their prompt.
    """
    _refuse(
        rewards.filter(pl.col("reward").is_nan()),
        "has the reward NaN, which cannot be compared: fix the reward",
    )
    _refuse(
        rewards.filter(pl.len().over("prompt_id") == 1),
        "is its prompt's only one, with no sibling to win against: sample two or more",
    )
    counted = (
        _counted_preferences(rewards)
        if "preferences" in rewards.columns
        else _counted_rewards(rewards)
    )
    siblings = pl.len().over("prompt_id") - 1
    estimators = {
        "unbiased": pl.col("points") / siblings,
        "self_counting": (pl.col("points") + 0.5) / (siblings + 1),
    }
    by_rate = pl.col("win_rate").round(DECIMALS).rank("ordinal", descending=True).over("prompt_id")
    by_reward = pl.col("reward").rank("ordinal", descending=True).over("prompt_id")
    return (
        counted.with_columns(win_rate=estimators[config.estimator])
        # of equal rows the first sample ranks first
        .with_columns(rank=by_rate if "preferences" in rewards.columns else by_reward)
        .select(DATASET.schema.names)
    )


def _counted_rewards(rewards: pl.DataFrame) -> pl.DataFrame:
    """Return `rewards`, sorted by key, with their counts.

    The counts are wins, ties, losses and points: W + T/2.
    """
    return (
        rewards.sort(KEY)
        .with_columns(
            wins=_smaller("reward"),
            ties=_not_larger("reward") - _smaller("reward") - 1,
            losses=pl.len().over("prompt_id") - _not_larger("reward"),
        )
        # ties count half: the mean over a prompt stays 1/2
        .with_columns(points=pl.col("wins") + pl.col("ties") / 2)
    )


def _counted_preferences(rewards: pl.DataFrame) -> pl.DataFrame:
    """Return `rewards`, sorted by key, with their counts.

    The counts are wins, ties, losses and points: the sum of the preferences over the siblings.
    """
    _refuse(rewards.filter(_nan_preference()), "has the preference NaN: fix the reward")
    _refuse(
        rewards.filter(pl.col("preferences").list.len() != pl.len().over("prompt_id")),
        "has not one preference for each response to its prompt: "
        "score all of them against each other",
    )
    return rewards.sort(KEY).with_columns(
        wins=_preferences(pl.element() > 0.5),
        # without the tie with itself
        ties=_preferences(pl.element() == 0.5) - 1,
        losses=_preferences(pl.element() < 0.5),
        points=_preferences_sum() - 0.5,
    )


def win_rates_of_preferences(preferences: pl.DataFrame) -> pl.DataFrame:
    """Return each row's win rate against its opponents, and the share tied.

    `preferences` has prompt_id, sample_index and preferences, those of the row over each opponent;
    both results are means over these. Returns key, win_rate and tie_share, sorted by key. Raises
    InputError for a NaN.
    """
    _refuse(preferences.filter(_nan_preference()), "has the preference NaN: fix the reward")
    count = pl.col("preferences").list.len()
    return preferences.sort(KEY).select(
        *KEY,
        win_rate=_preferences_sum() / count,
        tie_share=_preferences(pl.element() == 0.5) / count,
    )


def opponents_rewards(preferences: pl.DataFrame, opponents: pl.DataFrame) -> pl.DataFrame:
    """Return each opponent's mean preference over the rows of its prompt.

    `opponents` has prompt_id and sample_index; the preference of an opponent over a row is 1 minus
    that of the row in `preferences` over it. Returns key and reward, sorted by key. Raises
    InputError unless each row has one preference for each opponent on its prompt.
    """
    placed = (
        opponents.select(KEY).sort(KEY).with_columns(place=pl.int_range(pl.len()).over("prompt_id"))
    )
    counts = placed.group_by("prompt_id").agg(opponents=pl.len())
    rows = preferences.join(counts, on="prompt_id", how="left")
    _refuse(
        rows.filter(pl.col("preferences").list.len() != pl.col("opponents").fill_null(0)),
        "has not one preference for each response of the reference to its prompt: "
        "score them against each other",
    )
    means = (
        preferences.select(
            "prompt_id", "preferences", place=pl.int_ranges(pl.col("preferences").list.len())
        )
        .explode("preferences", "place")
        .group_by("prompt_id", "place")
        .agg(reward=1 - pl.col("preferences").mean())
    )
    return (
        placed.join(means, on=["prompt_id", "place"], how="left", validate="1:1")
        .sort(KEY)
        .select(*KEY, "reward")
    )


def win_rates_against(rewards: pl.DataFrame, opponents: pl.DataFrame) -> pl.DataFrame:
    """Return each row's win rate against its opponents, and tie share.

    The opponents are all of the row's prompt. Both frames have prompt_id, sample_index and reward,
    `rewards` M rows and `opponents` L rows per prompt. Returns key, win_rate (W + T/2) / L, with
    ties one half (MATH 7), and tie_share T / L, sorted by key. Counting in the union and
    subtracting the own side avoids the M x L comparison. Raises InputError for a NaN reward and for
    a prompt without opponents.
    """
    columns = ["prompt_id", "sample_index", "reward"]
    union = pl.concat(
        [
            rewards.select(columns).with_columns(is_own=True),
            opponents.select(columns).with_columns(is_own=False),
        ],
        how="vertical_relaxed",
    )
    _refuse(
        union.filter(pl.col("reward").is_nan()),
        "has the reward NaN, which cannot be compared: fix the reward",
    )
    counted = (
        union.sort(*KEY, "is_own")
        .with_columns(
            smaller=_smaller("reward") - _smaller("reward", "is_own"),
            not_larger=_not_larger("reward") - _not_larger("reward", "is_own"),
            opponents=pl.len().over("prompt_id") - pl.len().over("prompt_id", "is_own"),
        )
        .filter("is_own")
    )
    _refuse(
        counted.filter(pl.col("opponents") == 0),
        "has no response of the reference to be compared with",
    )
    return counted.select(
        *KEY,
        # W + T/2 = (W + (W + T)) / 2
        win_rate=(pl.col("smaller") + pl.col("not_larger")) / (2 * pl.col("opponents")),
        tie_share=(pl.col("not_larger") - pl.col("smaller")) / pl.col("opponents"),
    )


def _smaller(reward: str, *within: str) -> pl.Expr:
    """Count the prompt's rows of smaller reward.

    Only rows with the same values in the columns `within` count.
    """
    return pl.col(reward).rank("min").over("prompt_id", *within).cast(pl.Int64) - 1


def _not_larger(reward: str, *within: str) -> pl.Expr:
    """Count the prompt's rows of smaller or equal reward.

    The row itself is one of them. Only rows with the same values in the columns `within` count.
    """
    return pl.col(reward).rank("max").over("prompt_id", *within).cast(pl.Int64)


def _preferences(which: pl.Expr) -> pl.Expr:
    """Count a row's preferences for which `which` holds."""
    return pl.col("preferences").list.eval(which).list.sum().cast(pl.Int64)


def _preferences_sum() -> pl.Expr:
    """Return the sum of a row's preferences.

    It is summed in ascending order, so that the order of the opponents does not change the last
    bit.
    """
    return pl.col("preferences").list.sort().list.sum()


def _nan_preference() -> pl.Expr:
    return pl.col("preferences").list.eval(pl.element().is_nan()).list.any()


def _refuse(rows: pl.DataFrame, what: str) -> None:
    if len(rows):
        prompt_id, sample_index = rows.select(KEY).row(0)
        more = f" ({len(rows) - 1} more rows like this)" if len(rows) > 1 else ""
        raise InputError(f"prompt {prompt_id}, sample {sample_index} {what}{more}")


def _shards(spec: WinRatesSpec, store: Store) -> int:
    return len(store.manifest(spec.rewards).files)


def _compute(
    spec: WinRatesSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    columns = [
        name
        for name in (*KEY, "reward", "preferences")
        if name in store.open(spec.rewards).schema.names
    ]
    rewards = store.frame(spec.rewards, columns, shard=index)
    try:
        rows = win_rates(rewards, spec.win_rate)
    except InputError as error:
        raise InputError(f"{label(spec.rewards)}: {error}") from error
    progress(len(rows), len(rows))
    return Shard(rows.to_arrow())


def _numbers(spec: WinRatesSpec, table: pa.Table) -> dict[str, float]:
    """Return the share of comparisons that tie, and the mean win rate.

    The latter is 1/2, or something is wrong.
    """
    ties, decided = (
        pc.sum(table["ties"]).as_py(),
        pc.sum(pc.add(table["wins"], table["losses"])).as_py(),
    )
    return {
        "tie_share": ties / (ties + decided),
        "mean_win_rate": pc.mean(table["win_rate"]).as_py(),
    }


STAGE: Final[Stage[WinRatesSpec]] = Stage(
    name="win_rates",
    spec=WinRatesSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=light,
    role=Role(
        phase="training",
        sides=("",),
        side=one_side,
        history=("train",),
        is_timed=True,
        has_drift=True,
        expected=as_many_as("rewards"),
        related_parents={},
        function_seconds=no_function,
    ),
)
