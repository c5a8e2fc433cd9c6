"""Training rows, and how they are cut into optimizer steps and micro-batches.

The selected responses to one prompt form a *group*, and a group is never split. Every epoch visits
every group once, in an order that depends only on seed, iteration and epoch. Each step takes the
next `batch_prompts` groups; the last step of an epoch takes the remainder, so that nothing is
dropped or repeated. A step's loss is the mean over its actual rows, however they are distributed
over ranks and micro-batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from wind.config.training import TrainingConfig
from wind.errors import DatasetError
from wind.fingerprints import digest
from wind.models.shared_prompts import SharedPrompts
from wind.objectives import Batch
from wind.selections import TRAINED
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.training import TrainingSpec

KEY = ["prompt_id", "sample_index"]
COLUMNS = ("logp_policy", "logp_reference", "win_rate", "reward", "rank", "samples")

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Token sequences end to end: sequence i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[np.int32]
    offsets: Integers

    def __getitem__(self, index: int) -> npt.NDArray[np.int32]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> Integers:
        """Return the length of every sequence, in tokens."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Rows:
    """All rows of a training, sorted by prompt_id and sample_index.

    Group g is rows `starts[g]:starts[g + 1]`.
    """

    prompt_ids: list[str]  # one per group
    prompts: Ragged  # one per group
    responses: Ragged  # one per row
    starts: Integers  # [groups + 1]
    # fields of a `Batch`, each [rows]
    columns: dict[str, Floats]

    @property
    def groups(self) -> int:
        """Number of groups, one per prompt."""
        return len(self.starts) - 1

    @cached_property
    def longest(self) -> Integers:
        """Length in tokens of the longest prompt plus response, per group."""
        longest: Integers = self.prompts.lengths() + np.maximum.reduceat(
            self.responses.lengths(), self.starts[:-1]
        )
        return longest


# Arguments of `SequenceLogps`: input ids, attention mask and response mask, each [B, T], padded on
# the right to the longest row; or all rows in one, with their prompts shared.
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor] | tuple[SharedPrompts]


@dataclass(frozen=True)
class MicroBatch:
    """Whole groups, ready for a forward pass."""

    inputs: Inputs
    batch: Batch


@dataclass(frozen=True)
class Plan:
    """Assignment of groups to optimizer steps and micro-batches."""

    training: TrainingConfig
    seed: int
    iteration: int
    groups: int

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank in one optimizer step."""
        return self.training.batch_prompts // (self.training.micro_prompts * self.training.ranks)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, including an incomplete last one."""
        return math.ceil(self.groups / self.training.batch_prompts)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.training.epochs * self.steps_per_epoch

    def step_groups(self, step: int) -> Integers:
        """Return the groups of 0-based optimizer step `step`, in shuffled order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        seed = int(digest(["training order", self.seed, self.iteration, epoch])[:16], 16)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(self.groups)
        size = self.training.batch_prompts
        return order[within * size : (within + 1) * size]

    def micro_groups(self, groups: Integers, rank: int) -> list[Integers]:
        """Return the parts of `groups` that `rank` computes, one per micro-batch.

        Parts of an incomplete step may be empty.
        """
        size, ranks = self.training.micro_prompts, self.training.ranks
        firsts = [(micro * ranks + rank) * size for micro in range(self.accumulation)]
        return [groups[first : first + size] for first in firsts]


def load_rows(spec: TrainingSpec, store: Store) -> Rows:
    """Join the selected rows of the spec's datasets.

    Raises DatasetError if the datasets do not contain the same rows or disagree on a response.
    """
    frame = store.frame(spec.generations, [*KEY, "response_token_ids"])
    for handle, columns in (
        (spec.rewards, ["reward"]),
        (spec.win_rates, ["rank"]),
        (spec.selections, ["role", "label"]),
        (spec.logps, ["logp_policy", "logp_reference", "response_tokens"]),
    ):
        frame = frame.join(
            store.frame(handle, [*KEY, *columns]), on=KEY, how="inner", validate="1:1"
        )
        _check_rows(spec.generations, handle, frame.height)
    prompts = store.frame(spec.prompts, ["prompt_id", "prompt_token_ids"])
    frame = frame.join(prompts, on="prompt_id", how="inner", validate="m:1").sort(KEY)
    if frame.height != spec.generations.rows:
        raise DatasetError(
            f"{label(spec.generations)} answers prompts that {label(spec.prompts)} lacks: "
            "rerun generations"
        )
    if frame.filter(pl.col("response_tokens") != pl.col("response_token_ids").list.len()).height:
        raise DatasetError(
            f"{label(spec.logps)} scored other responses than {label(spec.generations)} holds: "
            "rerun logps"
        )
    frame = frame.with_columns(samples=pl.len().over("prompt_id")).rename({"label": "win_rate"})
    return as_rows(frame.filter(pl.col("role").is_in(TRAINED)), "prompt_id", COLUMNS)


def as_rows(frame: pl.DataFrame, group: str, columns: Sequence[str]) -> Rows:
    """Convert `frame` to Rows.

    Consecutive rows with equal values in the column `group` form one group; `columns` are the
    fields of a `Batch` to take.
    """
    prompts = frame.select("prompt_id", "prompt_token_ids", run=pl.col(group).rle_id())
    firsts = prompts.group_by("run", maintain_order=True).first()
    return Rows(
        prompt_ids=firsts["prompt_id"].to_list(),
        prompts=_ragged(firsts["prompt_token_ids"]),
        responses=_ragged(frame["response_token_ids"]),
        starts=_offsets(frame[group].rle().struct.field("len").to_numpy()),
        columns={name: frame[name].cast(pl.Float64).to_numpy() for name in columns},
    )


def micro_batch(
    rows: Rows, groups: Integers, device: str, *, is_shared: bool = False
) -> MicroBatch:
    """Return the rows of `groups`, which must not be empty, on `device`.

    With `is_shared` every prompt is there once.
    """
    return MicroBatch(
        inputs=model_inputs(rows, *rows_of(rows, groups), device, is_shared=is_shared),
        batch=objective_batch(rows, groups, device),
    )


def rows_of(rows: Rows, groups: Integers) -> tuple[Integers, Integers]:
    """Return the numbers of the rows of `groups`, and the group of each, both [B]."""
    index_B = np.concatenate(
        [np.arange(rows.starts[group], rows.starts[group + 1]) for group in groups]
    )
    return index_B, np.repeat(groups, rows.starts[groups + 1] - rows.starts[groups])


def objective_batch(rows: Rows, groups: Integers, device: str) -> Batch:
    """Return what an objective knows of the rows of `groups`."""
    index_B, _ = rows_of(rows, groups)
    group_B = np.repeat(np.arange(len(groups)), rows.starts[groups + 1] - rows.starts[groups])
    columns = {
        name: torch.from_numpy(values[index_B]).to(device) for name, values in rows.columns.items()
    }
    return Batch(**columns, group=torch.from_numpy(group_B).to(device))


def model_inputs(
    rows: Rows, index_B: Integers, group_B: Integers, device: str, *, is_shared: bool
) -> Inputs:
    """Return the arguments of `SequenceLogps` for the rows `index_B` of the groups `group_B`.

    Rows of one group must follow each other.
    """
    if is_shared:
        return (_shared(rows, index_B, group_B, device),)
    return _padded(rows, index_B, group_B, device)


def pieces(
    rows: Rows, index_B: Integers, group_B: Integers, most_tokens: int, *, is_shared: bool
) -> list[slice]:
    """Cut the rows `index_B` of the groups `group_B` into pieces of at most `most_tokens` tokens.

    Tokens are counted as a forward pass has them: with padding, or with shared prompts. A piece has
    one row at least.
    """
    cut: list[slice] = []
    first, tokens, longest = 0, 0, 0
    for row, (index, group) in enumerate(zip(index_B, group_B, strict=True)):
        prompt, response = len(rows.prompts[group]), len(rows.responses[index])
        longest = max(longest, prompt + response)
        begins_group = row == first or group != group_B[row - 1]
        tokens += response + prompt * bool(begins_group)
        if row > first and (tokens if is_shared else longest * (row + 1 - first)) > most_tokens:
            cut.append(slice(first, row))
            first, tokens, longest = row, prompt + response, prompt + response
    return [*cut, slice(first, len(index_B))]


def _shared(rows: Rows, index_B: Integers, group_B: Integers, device: str) -> SharedPrompts:
    firsts = np.flatnonzero(np.diff(group_B, prepend=-1))
    return SharedPrompts.of(
        [rows.prompts[group] for group in group_B[firsts]],
        [[rows.responses[row] for row in part] for part in np.split(index_B, firsts[1:])],
        device,
    )


def _padded(
    rows: Rows, index_B: Integers, group_B: Integers, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = [
        np.concatenate([rows.prompts[group], rows.responses[index]])
        for index, group in zip(index_B, group_B, strict=True)
    ]
    width = max(map(len, ids))
    # padding is masked, so any valid token id will do
    input_ids_B_T = np.zeros((len(ids), width), dtype=np.int64)
    attention_mask_B_T = np.zeros((len(ids), width), dtype=np.bool_)
    response_mask_B_T = np.zeros((len(ids), width), dtype=np.bool_)
    for row, (row_ids, group) in enumerate(zip(ids, group_B, strict=True)):
        input_ids_B_T[row, : len(row_ids)] = row_ids
        attention_mask_B_T[row, : len(row_ids)] = True
        response_mask_B_T[row, len(rows.prompts[group]) : len(row_ids)] = True
    return (
        torch.from_numpy(input_ids_B_T).to(device),
        torch.from_numpy(attention_mask_B_T).to(device),
        torch.from_numpy(response_mask_B_T).to(device),
    )


def _check_rows(generations: Dataset, other: Dataset, joined: int) -> None:
    if not joined == generations.rows == other.rows:
        raise DatasetError(
            f"{label(other)} has {other.rows} rows, {label(generations)} {generations.rows}, "
            f"and {joined} in common: rerun {other.name}"
        )


def _ragged(column: pl.Series) -> Ragged:
    return Ragged(
        values=column.explode(empty_as_null=False).to_numpy(),
        offsets=_offsets(column.list.len().to_numpy()),
    )


def _offsets(lengths: npt.NDArray[np.integer]) -> Integers:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
