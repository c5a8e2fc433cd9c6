"""The index of a version: a row of numbers for each prompt, in the order of their ids.

It is computed once, from the datasets of the version and of the iteration before, and kept under
`views/` in this machine's part of the store. It can be removed at any time. Building it reads a
shard at a time and takes about a hundred bytes of memory for each response: texts are reduced to
hashes, and token ids to their number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.audit.lineage import named
from wind.errors import DatasetError
from wind.files import atomic
from wind.inspection.fields import of_source
from wind.inspection.slices import Slices
from wind.quantities import IS_TRUNCATED, OF_POLICY, TIE_SHARE
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.versions import Version

# Raise it whenever the same version would get another index.
FORMAT: Final = 1
FOLDER: Final = "views"
# The rewards of a prompt's samples by sample_index, from which rank flips are counted.
REWARDS: Final = "rewards"
TRAINING: Final = "training"
# Columns of a dataset of responses, and what is said about all responses to a prompt.
RESPONSE: Final = ("response", "response_token_ids", "finish_reason")
OF_RESPONSES: Final = (
    pl.len().alias("samples"),
    pl.col("tokens").mean().alias("tokens_mean"),
    pl.col("tokens").max().alias("tokens_max"),
    IS_TRUNCATED.mean().alias("truncated"),
    pl.col("response").n_unique().alias("distinct"),
)

Floats = npt.NDArray[np.float64]


def prompts_of(store: Store, version: Version) -> pl.DataFrame:
    """Read the prompts of `version` as a reader sees them.

    Columns: prompt_id, text (of the last message), split, answer.
    """
    columns = ["prompt_id", "split", "answer", "messages"]
    frame = store.frame(version.content.datasets["prompts"], columns)
    return frame.select(
        "prompt_id",
        pl.col("messages").list.last().struct.field("content").fill_null("").alias("text"),
        "split",
        "answer",
    )


def index_of(store: Store, versions: Sequence[Version], slices: Slices) -> pl.DataFrame:
    """Return the index of the last of `versions`, which are a chain, first iteration first.

    One row for each prompt of that version, sorted by prompt_id; its columns are the fields of
    source `index`, null where the iteration has no such number, and `rewards`. Whatever indexes are
    not there yet are computed. Raises DatasetError if a dataset of the version cannot be read.
    """
    pairs = list(zip((None, *versions), versions, strict=False))
    stored = [_path(store, before, version) for before, version in pairs]
    frame, begin = None, 0
    for place in reversed(range(len(pairs))):
        if (frame := _read(stored[place])) is not None:
            begin = place + 1
            break
    for place in range(begin, len(pairs)):
        try:
            frame = _with_changes(_computed(store, versions[place], slices), frame)
        except DatasetError:
            if place == len(pairs) - 1:
                raise
            frame = None  # the next one has nothing to compare with
            continue
        if place == 0 or frame is not None:
            _keep(stored[place], frame)
    assert frame is not None
    return frame


def _path(store: Store, before: Version | None, version: Version) -> Path:
    previous = before.id[:12] if before is not None else "first"
    return store.local / FOLDER / f"{version.id}-{previous}-{FORMAT}.arrow"


def _read(path: Path) -> pl.DataFrame | None:
    """Read a stored index; None if there is none, or it is damaged."""
    try:
        return pl.read_ipc(path) if path.is_file() else None
    except (pl.exceptions.PolarsError, OSError):
        return None


def _keep(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        frame.write_ipc(partial)


def _computed(store: Store, version: Version, slices: Slices) -> pl.DataFrame:
    """Compute the columns of the index that need no other iteration."""
    datasets = named(store, version)
    prompts = store.frame(datasets["prompts"], ["prompt_id"])
    numbers = [
        part
        for part in (_of_training(slices, datasets), _of_evaluation(slices, datasets))
        if part is not None
    ]
    frame = prompts
    if numbers:
        frame = frame.join(
            pl.concat(numbers, how="diagonal_relaxed"),
            on="prompt_id",
            how="left",
            maintain_order="left",
        )
    if (judged := _disagreement(slices, version, datasets)) is not None:
        frame = frame.join(judged, on="prompt_id", how="left", maintain_order="left")
    absent = {
        name: pl.List(pl.Float64) if name == REWARDS else pl.Float64
        for name in (*of_source("index"), REWARDS)
        if name not in frame.columns
    }
    frame = frame.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in absent.items()
    )
    plain = [pl.col(name).cast(pl.Float64) for name in of_source("index")]
    return frame.select(
        "prompt_id", *(pl.when(each.is_finite()).then(each) for each in plain), REWARDS
    )


def _of_training(slices: Slices, datasets: Mapping[str, Dataset]) -> pl.DataFrame | None:
    """Return the numbers of the prompts that were trained on, or None without responses."""
    if "rollouts" in datasets:
        rows = _rows(slices, datasets["rollouts"], "drawn_from", "reward", "win_rate", *RESPONSE)
        # Samples of different steps have the same sample_index, so that none can be followed.
        return _per_prompt(
            rows.filter(OF_POLICY),
            *OF_RESPONSES,
            *_of_rewards("reward")[:2],
            pl.col("win_rate").max(),
        )
    if "generations" not in datasets:
        return None
    parts = [_per_prompt(_rows(slices, datasets["generations"], *RESPONSE), *OF_RESPONSES)]
    if "rewards" in datasets:
        rows = _rows(slices, datasets["rewards"], "reward")
        parts.append(_per_prompt(rows, *_of_rewards("reward")))
    if "win_rates" in datasets:
        rows = _rows(slices, datasets["win_rates"], "win_rate", "wins", "ties", "losses")
        parts.append(
            _per_prompt(rows, pl.col("win_rate").max(), TIE_SHARE.mean().alias("tie_share"))
        )
    return _joined(parts)


def _of_evaluation(slices: Slices, datasets: Mapping[str, Dataset]) -> pl.DataFrame | None:
    """Return the numbers of the held-out prompts, or None without an evaluation."""
    parts = []
    if "eval_generations" in datasets:
        rows = _rows(slices, datasets["eval_generations"], *RESPONSE)
        parts.append(_per_prompt(rows, *OF_RESPONSES))
    if "evaluation" in datasets:
        rows = _rows(
            slices,
            datasets["evaluation"],
            "reward_policy",
            "reward_reference",
            "win_rate",
            "tie_share",
        )
        gain = pl.col("reward_policy").mean() - pl.col("reward_reference").mean()
        parts.append(
            _per_prompt(
                rows,
                *_of_rewards("reward_policy"),
                gain.alias("reward_gain"),
                pl.col("win_rate", "tie_share").mean(),
            )
        )
    return _joined(parts) if parts else None


def _disagreement(
    slices: Slices, version: Version, datasets: Mapping[str, Dataset]
) -> pl.DataFrame | None:
    """Return how far the training reward's win rate exceeds the lowest of another judge.

    The judges are those of `matches`, against whom the evaluation compares with. Without matches it
    is the gold answer, where one is known: of accuracies 0 and 1 the win rate, ties one half, is
    (1 + mean of the policy's - mean of the other's) / 2. None if nobody else judges.
    """
    if "matches" in datasets:
        against = version.content.recipe.get("evaluation", {}).get("against", "initial")
        rows = _rows(slices, datasets["matches"], "judge", "opponent", "win_rate").filter(
            opponent=against
        )
        means = rows.group_by("prompt_id", "judge").agg(pl.col("win_rate").mean())
        trained = means.filter(judge=TRAINING).select("prompt_id", trained="win_rate")
        others = means.filter(pl.col("judge") != TRAINING)
        lowest = others.group_by("prompt_id").agg(pl.col("win_rate").min().alias("lowest"))
        found = trained.join(lowest, on="prompt_id")
    elif "evaluation" in datasets:
        rows = _rows(
            slices, datasets["evaluation"], "win_rate", "accuracy_policy", "accuracy_reference"
        )
        difference = pl.col("accuracy_policy").mean() - pl.col("accuracy_reference").mean()
        found = _per_prompt(
            rows.drop_nulls(),
            pl.col("win_rate").mean().alias("trained"),
            ((1 + difference) / 2).alias("lowest"),
        )
    else:
        return None
    return found.select("prompt_id", disagreement=pl.col("trained") - pl.col("lowest"))


def _with_changes(frame: pl.DataFrame, before: pl.DataFrame | None) -> pl.DataFrame:
    """Add what compares each prompt with the iteration before."""
    if before is None:
        return frame
    earlier = before.select("prompt_id", earlier="reward_mean", earlier_rewards=REWARDS)
    both = frame.join(earlier, on="prompt_id", how="left", maintain_order="left")
    return frame.with_columns(
        (both["reward_mean"] - both["earlier"]).alias("reward_change"),
        pl.Series("rank_flips", rank_flips(both["earlier_rewards"], both[REWARDS])),
    )


def rank_flips(before: pl.Series, after: pl.Series) -> pl.Series:
    """Return the share of pairs of samples whose order by reward was reversed.

    Both hold a list of rewards by sample_index for each prompt, or null. Only samples that both
    have count, and a tie on either side is no reversal. Null where there is no pair.
    """
    width = max(int(_lengths(each).max(initial=0)) for each in (before, after))
    earlier_P_N, later_P_N = _padded(before, width), _padded(after, width)
    reversed_P, pairs_P = np.zeros(len(after)), np.zeros(len(after))
    for one in range(width):
        for other in range(one):
            earlier_P = earlier_P_N[:, one] - earlier_P_N[:, other]
            later_P = later_P_N[:, one] - later_P_N[:, other]
            reversed_P += earlier_P * later_P < 0
            pairs_P += ~np.isnan(earlier_P * later_P)
    shares = pl.Series(reversed_P / np.where(pairs_P == 0, np.nan, pairs_P))
    return shares.fill_nan(None)


def _padded(rewards: pl.Series, width: int) -> Floats:
    """Return rewards_P_N, NaN where there are fewer than `width`."""
    padded_P_N = np.full((len(rewards), width), np.nan)
    padded_P_N[np.arange(width) < _lengths(rewards)[:, None]] = (
        rewards.drop_nulls().explode(empty_as_null=False).to_numpy()
    )
    return padded_P_N


def _lengths(rewards: pl.Series) -> npt.NDArray[np.int64]:
    return rewards.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def _of_rewards(reward: str) -> list[pl.Expr]:
    values = pl.col(reward)
    return [
        values.mean().alias("reward_mean"),
        values.max().alias("reward_best"),
        values.alias(REWARDS),
    ]


def _joined(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part, on="prompt_id", how="left", maintain_order="left")
    return joined


def _per_prompt(rows: pl.DataFrame, *numbers: pl.Expr) -> pl.DataFrame:
    return rows.group_by("prompt_id", maintain_order=True).agg(*numbers)


def _rows(slices: Slices, handle: Dataset, *columns: str) -> pl.DataFrame:
    """Read `columns` of all rows, texts and token ids reduced to hashes and counts.

    The prompt's id is always among them.
    """
    return pl.concat(
        _reduced(table) for table in slices.tables(handle, ["prompt_id", *columns])
    ).rechunk()


def _reduced(table: pa.Table) -> pl.DataFrame:
    if "response_token_ids" in table.column_names:
        place = table.column_names.index("response_token_ids")
        counts = pc.list_value_length(table["response_token_ids"])
        table = table.set_column(place, "tokens", counts)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(
        pl.col(name).hash() for name in ("response",) if name in frame.columns
    )
