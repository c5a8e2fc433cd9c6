"""Selections: which of a prompt's responses train, with what label.

One row is one response and its role: `all` where every row trains; `best`, `worst` or `random`
where some of the N do; `unused` for a row that was not selected, and `below_margin` for every row
of a prompt whose two selected rewards are too close. Nothing is dropped: the rows are those of the
win rates.

A row that was selected *for* being best or worst has a win rate biased outward: over all draws, the
row of ascending rank k has the true win rate k/(N + 1), where the unbiased estimate says (k - 1)/(N
- 1) and the self-counting one (k - 1/2)/N (MATH 2.8). The label `rank` corrects this.
"""

from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.config.objectives import SelectionConfig
from wind.config.rewards import WinRateConfig
from wind.errors import DatasetError, InputError
from wind.fingerprints import digest
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
    row="one response and what training does with it",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("role", pa.string(), "all | best | worst | random | unused | below_margin"),
        Column("label", pa.float64(), "[0, 1], the win rate that training is told"),
    ),
    key=SAMPLE,
    foreign_keys=(
        ForeignKey(SAMPLE, "rewards", is_one_to_one=True),
        ForeignKey(SAMPLE, "win_rates", is_one_to_one=True),
    ),
)
KEY = DATASET.key
TRAINED = ("all", "best", "worst", "random")  # the roles of the rows that training sees


class SelectionsSpec(Spec):
    """The responses to select from, and the selection."""

    rewards: Dataset
    win_rates: Dataset
    win_rate: WinRateConfig  # the estimator whose bias the label corrects
    selection: SelectionConfig
    seed: int
    iteration: int  # 1-based; fixes the random row, with the seed and the prompt


def selections(rows: pl.DataFrame, spec: SelectionsSpec) -> pl.DataFrame:
    """Return the selections rows of `rows`, sorted by key.

    `rows` has prompt_id, sample_index, reward, win_rate and rank, where 1 is the best.
    """
    rank, samples = pl.col("rank"), pl.len().over("prompt_id")
    chosen = {
        "all": pl.lit("all"),
        "best": pl.when(rank == 1).then(pl.lit("best")),
        "best_worst": pl.when(rank == 1)
        .then(pl.lit("best"))
        .when(rank == samples)
        .then(pl.lit("worst")),
        "best_random": pl.when(rank == 1)
        .then(pl.lit("best"))
        .when(rank == pl.col("drawn"))
        .then(pl.lit("random")),
    }[spec.selection.rows]
    rewards = pl.col("reward").filter(pl.col("role") != "unused")
    gap = (rewards.max() - rewards.min()).over("prompt_id")
    is_close = gap <= spec.selection.margin if spec.selection.margin is not None else pl.lit(False)
    return (
        rows.sort(KEY)
        .join(
            _drawn_ranks(rows, spec),
            on="prompt_id",
            how="left",
            validate="m:1",
            maintain_order="left",
        )
        .with_columns(role=chosen.fill_null("unused"))
        .with_columns(
            role=pl.when(is_close).then(pl.lit("below_margin")).otherwise("role"),
            label=_label(spec, samples),
        )
        .select(DATASET.schema.names)
    )


def _label(spec: SelectionsSpec, samples: pl.Expr) -> pl.Expr:
    """Return the label of each row.

    It is the win rate P, or k/(N + 1) at ascending rank k. Tied rows share their ranks:
    k = 1 + (N - 1) P_U = 1/2 + N P_V, for the unbiased estimate P_U and the self-counting one P_V.
    `samples` is N.
    """
    if spec.selection.label == "win_rate":
        return pl.col("win_rate")
    is_unbiased = spec.win_rate.estimator == "unbiased"
    rank = (
        1 + (samples - 1) * pl.col("win_rate")
        if is_unbiased
        else 0.5 + samples * pl.col("win_rate")
    )
    return rank / (samples + 1)


def _drawn_ranks(rows: pl.DataFrame, spec: SelectionsSpec) -> pl.DataFrame:
    """Return by prompt the rank of one row other than the best.

    Each has the same chance; seed, iteration and prompt fix the draw.
    """
    sizes = rows.group_by("prompt_id").len()
    drawn = [
        2 + int(digest(["selected row", spec.seed, spec.iteration, prompt_id]), 16) % (samples - 1)
        for prompt_id, samples in sizes.iter_rows()
    ]
    return sizes.select("prompt_id", drawn=pl.Series(drawn, dtype=pl.Int64))


def _shards(spec: SelectionsSpec, store: Store) -> int:
    return len(store.manifest(spec.win_rates).files)


def _compute(
    spec: SelectionsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    wins = store.frame(spec.win_rates, [*KEY, "win_rate", "rank"], shard=index)
    rewards = store.frame(spec.rewards, [*KEY, "reward"], shard=index)
    rows = wins.join(rewards, on=KEY, how="inner", validate="1:1")
    if not len(rows) == len(wins) == len(rewards):
        raise DatasetError(
            f"{label(spec.win_rates)} and {label(spec.rewards)} do not belong together: "
            "rerun win_rates"
        )
    progress(len(rows), len(rows))
    return Shard(selections(rows, spec).to_arrow())


def _numbers(spec: SelectionsSpec, table: pa.Table) -> dict[str, float]:
    """Return the share of rows that train.

    Raises InputError if no row trains.
    """
    trained = pc.sum(pc.is_in(table["role"], pa.array(TRAINED))).as_py()
    if not trained:
        raise InputError(
            f"no prompt of {label(spec.rewards)} has rewards that differ by more than "
            f"{spec.selection.margin}: lower selection.margin"
        )
    return {"trained_share": trained / table.num_rows}


STAGE: Final[Stage[SelectionsSpec]] = Stage(
    name="selections",
    spec=SelectionsSpec,
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
        is_timed=False,
        has_drift=False,
        expected=as_many_as("rewards"),
        related_parents={},
        function_seconds=no_function,
    ),
)
