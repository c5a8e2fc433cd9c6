"""Building blocks of suites: dataset, frames and shared expectations.

A suite is a tuple of frames. A frame is built with polars, aggregates per prompt included, and has
scalar columns only; its expectations judge these columns and nothing else. Float columns pass
through `finite`, so that "not null" means "finite".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import great_expectations.expectations as gxe
import polars as pl
import pyarrow.compute as pc
from great_expectations.expectations.expectation import Expectation

from wind.config.checks import ChecksConfig
from wind.errors import DatasetError
from wind.quantities import IS_EMPTY, IS_TRUNCATED, RESPONSE_TOKENS
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Manifest, label

GENERATION = ("prompt_id", "sample_index")
# Rows of a dataset checked at once: with their derived columns, in polars and pandas, about 400 MB.
ROWS_AT_ONCE = 500_000
# rounding of a sum or mean of win rates or preferences in float64
TOLERANCE = 1e-9

# A range of prompt_id: the first one, and the first one beyond it. None: no bound.
Prompts = tuple[str | None, str | None]


@dataclass(frozen=True)
class Subject:
    """A stored dataset, with its parents and settings."""

    handle: Dataset
    store: Store
    manifest: Manifest
    prompts: Prompts = (None, None)  # only rows of these prompts are read
    # by dataset, the first and last prompt of each shard
    extents: dict[Dataset, list[Prompts]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, handle: Dataset, store: Store) -> "Subject":
        """Open `handle`. Raises DatasetError if it is not in the store."""
        return cls(handle, store, store.manifest(handle))

    def rows(self, *columns: str) -> pl.DataFrame:
        """Read `columns` of its rows."""
        low, high = self.prompts
        if low is None and high is None:
            return self.store.frame(self.handle, columns)
        wanted = pl.lit(True)
        if low is not None:
            wanted &= pl.col("prompt_id") >= low
        if high is not None:
            wanted &= pl.col("prompt_id") < high
        names = list(dict.fromkeys((*columns, "prompt_id")))
        pieces = [
            self.store.frame(self.handle, names, shard=shard).filter(wanted)
            for shard in self._shards_of_prompts()
        ]
        nothing = self.store.frame(self.handle, names, shard=0).clear()
        return pl.concat([nothing, *pieces]).select(columns)

    def parts(self) -> list["Subject"]:
        """Split it into parts of about `ROWS_AT_ONCE` rows.

        All rows of a prompt are in one part, and so are the rows of its parents.
        """
        starts, position = set(), 0
        for shard in range(len(self.manifest.files) if self.handle.rows > ROWS_AT_ONCE else 0):
            prompt_ids = self.store.read(self.handle, ["prompt_id"], shard=shard)["prompt_id"]
            starts |= {
                prompt_ids[row].as_py()
                for row in range(-position % ROWS_AT_ONCE, len(prompt_ids), ROWS_AT_ONCE)
            }
            position += len(prompt_ids)
        bounds = [None, *sorted(starts)[1:], None]
        return [replace(self, prompts=prompts) for prompts in pairwise(bounds)]

    def _shards_of_prompts(self) -> list[int]:
        """Return the shards that may have rows of `prompts`."""
        if self.handle not in self.extents:
            shards = range(len(self.manifest.files))
            columns = (
                self.store.read(self.handle, ["prompt_id"], shard=shard)["prompt_id"]
                for shard in shards
            )
            limits = [pc.min_max(column).as_py() for column in columns]
            self.extents[self.handle] = [(each["min"], each["max"]) for each in limits]
        low, high = self.prompts
        return [
            shard
            for shard, (first, last) in enumerate(self.extents[self.handle])
            if first is not None
            and last is not None
            and (low is None or last >= low)
            and (high is None or first < high)
        ]

    def columns(self) -> list[str]:
        """Return the names of all its columns."""
        return list(self.store.open(self.handle).schema.names)

    def input(self, name: str) -> AnyHandle:
        """Return the handle of the parent `name`.

        Raises DatasetError if there is none.
        """
        if name not in self.manifest.parents:
            raise DatasetError(
                f"the manifest of {label(self.handle)} names no parent {name!r}: "
                "rerun the stage that makes it"
            )
        return self.manifest.parents[name]

    def parent(self, name: str) -> "Subject":
        """Open the parent dataset `name`.

        Raises DatasetError if there is none.
        """
        handle = self.input(name)
        if not isinstance(handle, Dataset):
            raise DatasetError(
                f"the parent {name!r} of {label(self.handle)} is {label(handle)}, not a dataset"
            )
        return replace(Subject.of(handle, self.store), prompts=self.prompts, extents=self.extents)

    def setting(self, *path: str) -> Any:
        """Return the value at `path` in the spec of its computation.

        Raises DatasetError if the manifest does not record it.
        """
        value = self.manifest.computed_by.get("spec", {})
        for name in path:
            if not isinstance(value, dict) or name not in value:
                where = ".".join(path)
                raise DatasetError(
                    f"the manifest of {label(self.handle)} records no {where}: "
                    "rerun the stage that makes it"
                )
            value = value[name]
        return value


@dataclass(frozen=True)
class Frame:
    """One view of a dataset, and the expectations that judge it."""

    name: str  # a plural noun for its rows
    key: tuple[str, ...]  # the columns that identify a row; empty if there is only one row
    build: Callable[[Subject], pl.DataFrame]
    expectations: Callable[[Subject, ChecksConfig], list[Expectation]]
    # built from the rows of some prompts, it has exactly the rows that the whole has of them
    by_prompt: bool = False


Suite = tuple[Frame, ...]

# Of a group of rows: true if their ranks are 1 .. N.
IS_RANKED = (
    (pl.col("rank").n_unique() == pl.len())
    & (pl.col("rank").min() == 1)
    & (pl.col("rank").max() == pl.len())
)
# Of the rows of a prompt: true if all of its `samples` are there, once each.
IS_WHOLE = (pl.col("sample_index").n_unique() == pl.len()) & (pl.len() == pl.col("samples").max())
# Of the stored columns of responses: those that `is_response` judges.
RESPONSE = (
    pl.col("finish_reason"),
    pl.col("seed"),
    RESPONSE_TOKENS.alias("response_tokens"),
    IS_EMPTY.alias("is_empty"),
    IS_TRUNCATED.alias("is_truncated"),
)


def finite(*columns: str) -> pl.Expr:
    """Select float columns, with null in place of NaN and infinities."""
    return pl.when(pl.col(*columns).is_finite()).then(pl.col(*columns))


def with_parent(rows: pl.DataFrame, parent: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Join `rows` with the parent's row of the same key.

    The column `is_known` is false for a row without one.
    """
    if _are_paired(rows, parent, key):
        columns = parent.drop(key)
        return rows.hstack(
            columns.rename(
                {name: f"{name}_right" for name in columns.columns if name in rows.columns}
            )
        ).with_columns(is_known=True)
    marked = parent.unique(key, maintain_order=True).with_columns(is_known=True)
    return rows.join(marked, on=key, how="left", maintain_order="left").with_columns(
        pl.col("is_known").fill_null(False)
    )


def keys_present(parent: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """List the keys of the parent that `rows` has and lacks.

    The column `is_present` is false for a key that it lacks.
    """
    if _are_paired(parent, rows, key):
        return parent.select(*key, is_present=True)
    marked = rows.select(key).unique().with_columns(is_present=True)
    joined = parent.select(key).join(marked, on=key, how="left", maintain_order="left")
    return joined.with_columns(pl.col("is_present").fill_null(False))


def _are_paired(rows: pl.DataFrame, others: pl.DataFrame, key: Sequence[str]) -> bool:
    """Return true if both have the same distinct keys in order.

    This is so wherever nothing is wrong, and it makes a join unnecessary.
    """
    keys = rows.select(key)
    if not keys.equals(others.select(key)):
        return False
    # rows are sorted by key, so repeats are neighbors
    repeats = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in key)
    return not keys.select(repeats.any()).item()


def unique(key: Sequence[str]) -> Expectation:
    """Expect that no two rows share `key`."""
    description = f"no two rows share {', '.join(key)}"
    if len(key) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=key[0], description=description)
    return gxe.ExpectCompoundColumnsToBeUnique(column_list=list(key), description=description)


def is_known(parent: str) -> Expectation:
    """Expect that every row has its parent's row, after `with_parent`."""
    return gxe.ExpectColumnValuesToBeInSet(
        column="is_known", value_set=[True], description=f"every row belongs to one of {parent}"
    )


def is_present(parent: str) -> Expectation:
    """Expect that no row of the parent was lost, after `keys_present`."""
    return gxe.ExpectColumnValuesToBeInSet(
        column="is_present", value_set=[True], description=f"no row of {parent} was lost"
    )


def is_finite(column: str) -> Expectation:
    """Expect finite numbers in a column that passed through `finite`."""
    return gxe.ExpectColumnValuesToNotBeNull(
        column=column, description=f"{column} is a finite number"
    )


def is_logp(column: str) -> list[Expectation]:
    """Expect finite log-probabilities, at most 0."""
    bound = gxe.ExpectColumnValuesToBeBetween(
        column=column, max_value=0, description=f"{column} is at most 0"
    )
    return [is_finite(column), bound]


def is_within_0_and_1(column: str, plural: str) -> Expectation:
    """Expect that `plural`, the values of `column`, lie in [0, 1]."""
    return gxe.ExpectColumnValuesToBeBetween(
        column=column, min_value=0, max_value=1, description=f"{plural} lie in [0, 1]"
    )


def is_sample_index(samples: int) -> Expectation:
    """Expect a `sample_index` below `samples`."""
    return gxe.ExpectColumnValuesToBeBetween(
        column="sample_index",
        min_value=0,
        max_value=samples - 1,
        description=f"sample_index is 0 .. {samples - 1}",
    )


def averages_one_half(group: str) -> Expectation:
    """Expect that the `mean_win_rate` of each `group` is one half."""
    return gxe.ExpectColumnValuesToBeBetween(
        column="mean_win_rate",
        min_value=0.5 - TOLERANCE,
        max_value=0.5 + TOLERANCE,
        description=f"the win rates of a {group} average one half",
    )


def is_ranked(group: str) -> Expectation:
    """Expect the ranks 1 .. N in each `group`.

    The column `is_ranked` is made with `IS_RANKED`.
    """
    return gxe.ExpectColumnValuesToBeInSet(
        column="is_ranked", value_set=[True], description=f"the ranks of a {group} are 1 .. N"
    )


def is_response(limit: int, checks: ChecksConfig) -> list[Expectation]:
    """Expect complete responses, few of them empty or truncated.

    A response has 1 to `limit` tokens, a finish reason and a seed of its own.
    """
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="finish_reason",
            value_set=["stop", "length"],
            description="finish_reason is stop or length",
        ),
        unique(["seed"]),
        gxe.ExpectColumnValuesToBeBetween(
            column="response_tokens", min_value=1, description="every response has a token"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="response_tokens",
            max_value=limit,
            description="no response is longer than max_new_tokens",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_empty",
            value_set=[False],
            mostly=1 - checks.max_empty_share,
            description=f"at most {checks.max_empty_share:.1%} of responses are empty",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_truncated",
            value_set=[False],
            mostly=1 - checks.max_truncated_share,
            description=f"at most {checks.max_truncated_share:.1%} of responses are truncated",
        ),
    ]


def prompt_samples(prompts: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Count the different samples of each of `prompts`.

    The count is null for a prompt whose samples are all lost.
    """
    samples = rows.group_by("prompt_id").agg(samples=pl.col("sample_index").n_unique())
    return keys_present(prompts, rows, ["prompt_id"]).join(
        samples, on="prompt_id", how="left", maintain_order="left"
    )


def has_samples(prompts: str, samples: int) -> list[Expectation]:
    """Expect `samples` samples of every prompt, in a frame of `prompt_samples`."""
    return [
        is_present(prompts),
        gxe.ExpectColumnValuesToBeInSet(
            column="samples", value_set=[samples], description=f"every prompt has {samples} samples"
        ),
    ]


def no_row_lost(parent: str, *, by_prompt: bool = False) -> Frame:
    """Build the frame that expects every row of `parent` in the dataset."""

    def rows(subject: Subject) -> pl.DataFrame:
        keys = subject.parent(parent).rows(*GENERATION)
        return keys_present(keys, subject.rows(*GENERATION), GENERATION)

    def expectations(subject: Subject, checks: ChecksConfig) -> list[Expectation]:
        return [is_present(f"the {parent.replace('_', ' ')}")]

    return Frame(parent, GENERATION, rows, expectations, by_prompt)
