"""What suites are made of: the dataset under check with its parents, the frames looked at, the
shared expectations.

A suite is a tuple of frames. A frame is built with polars (aggregates per prompt included) and
holds scalar columns only; its expectations judge those columns and nothing else. A float column
passes through `finite`, so that "not null" reads as "finite".
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
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Manifest, label

GENERATION = ("prompt_id", "sample_index")
# of a dataset under check; as frames of polars and pandas with what is derived, about 400 MB
ROWS_AT_ONCE = 500_000

Prompts = tuple[str | None, str | None]  # the first prompt_id, and the first one no longer meant


@dataclass(frozen=True)
class Subject:
    """A stored dataset and the way to its parents and to the config sections it was computed from."""

    handle: Dataset
    store: Store
    manifest: Manifest
    prompts: Prompts = (None, None)  # only their rows are looked at
    # first and last prompt of the shards
    extents: dict[Dataset, list[Prompts]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, handle: Dataset, store: Store) -> "Subject":
        """The subject of `handle`. Raises DatasetError if it is not in the store."""
        return cls(handle, store, store.manifest(handle))

    def rows(self, *columns: str) -> pl.DataFrame:
        """Its rows, those columns only."""
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
        """The same in parts of about `ROWS_AT_ONCE` rows, by prompts: all rows of one are in the
        same, as are its parents'.
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
        """The shards that may have rows of `prompts`."""
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
        """The names of all its columns."""
        return list(self.store.open(self.handle).schema.names)

    def input(self, name: str) -> AnyHandle:
        """The handle of the parent `name`. Raises DatasetError if the manifest names none."""
        if name not in self.manifest.parents:
            raise DatasetError(
                f"the manifest of {label(self.handle)} names no parent {name!r}: rerun the stage that makes it"
            )
        return self.manifest.parents[name]

    def parent(self, name: str) -> "Subject":
        """The parent dataset `name`. Raises DatasetError if there is none."""
        handle = self.input(name)
        if not isinstance(handle, Dataset):
            raise DatasetError(
                f"the parent {name!r} of {label(self.handle)} is {label(handle)}, not a dataset"
            )
        return replace(Subject.of(handle, self.store), prompts=self.prompts, extents=self.extents)

    def setting(self, *path: str) -> Any:
        """The value at `path` in the spec it was computed from. Raises DatasetError if the manifest
        does not record it.
        """
        value = self.manifest.computed_by.get("spec", {})
        for name in path:
            if not isinstance(value, dict) or name not in value:
                where = ".".join(path)
                raise DatasetError(
                    f"the manifest of {label(self.handle)} records no {where}: rerun the stage that makes it"
                )
            value = value[name]
        return value


@dataclass(frozen=True)
class Frame:
    """One view of a dataset and what must hold of it."""

    name: str  # what its rows are, in the plural
    key: tuple[str, ...]  # columns that name a row; empty where there is one row only
    build: Callable[[Subject], pl.DataFrame]
    expectations: Callable[[Subject, ChecksConfig], list[Expectation]]
    # of the rows of some prompts, dataset and parents alike, it builds the part that is theirs
    by_prompt: bool = False


Suite = tuple[Frame, ...]


def finite(*columns: str) -> pl.Expr:
    """Those float columns with NaN and infinities as nulls."""
    return pl.when(pl.col(*columns).is_finite()).then(pl.col(*columns))


def known(rows: pl.DataFrame, parent: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """`rows` with the columns of the parent's row of the same key, and `is_known`: whether there is
    one.
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


def present(parent: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The keys of the parent with `is_present`: whether `rows` has one."""
    if _are_paired(parent, rows, key):
        return parent.select(*key, is_present=True)
    marked = rows.select(key).unique().with_columns(is_present=True)
    joined = parent.select(key).join(marked, on=key, how="left", maintain_order="left")
    return joined.with_columns(pl.col("is_present").fill_null(False))


def _are_paired(rows: pl.DataFrame, others: pl.DataFrame, key: Sequence[str]) -> bool:
    """Whether row by row both have the same keys, each once, as where nothing is amiss: then there
    is nothing to look up.
    """
    keys = rows.select(key)
    if not keys.equals(others.select(key)):
        return False
    # rows are in order of their key
    repeats = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in key)
    return not keys.select(repeats.any()).item()


def unique(key: Sequence[str]) -> Expectation:
    """No two rows share `key`."""
    description = f"no two rows share {', '.join(key)}"
    if len(key) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=key[0], description=description)
    return gxe.ExpectCompoundColumnsToBeUnique(column_list=list(key), description=description)


def is_known(parent: str) -> Expectation:
    """Every row has its parent's row."""
    return gxe.ExpectColumnValuesToBeInSet(
        column="is_known", value_set=[True], description=f"every row belongs to one of {parent}"
    )


def is_present(parent: str) -> Expectation:
    """No row of the parent was lost."""
    return gxe.ExpectColumnValuesToBeInSet(
        column="is_present", value_set=[True], description=f"no row of {parent} was lost"
    )


def is_finite(column: str) -> Expectation:
    """The values of a column made with `finite` are numbers."""
    return gxe.ExpectColumnValuesToNotBeNull(
        column=column, description=f"{column} is a finite number"
    )


def is_logp(column: str) -> list[Expectation]:
    """A log-probability is finite and at most 0."""
    bound = gxe.ExpectColumnValuesToBeBetween(
        column=column, max_value=0, description=f"{column} is at most 0"
    )
    return [is_finite(column), bound]


def is_response(limit: int, checks: ChecksConfig) -> list[Expectation]:
    """A response has a token and at most `limit`, a reason to end and a seed of its own; few are
    empty or truncated.
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
