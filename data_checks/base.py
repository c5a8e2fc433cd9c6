"""What suites are made of: the dataset under check with its parents, the frames looked at, the shared expectations.

A suite is a tuple of frames. A frame is built with polars (aggregates per prompt included) and holds scalar columns only; its
expectations judge those columns and nothing else. A float column passes through `finite`, so that "not null" reads as "finite".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from wind.config import ChecksConfig
from wind.datasets import AnyHandle, Dataset, Manifest, Store, label
from wind.errors import DatasetError

GENERATION = ("prompt_id", "sample_index")


@dataclass(frozen=True)
class Subject:
    """A stored dataset and the way to its parents and to the config sections it was computed from."""

    handle: Dataset
    store: Store
    manifest: Manifest

    @classmethod
    def of(cls, handle: Dataset, store: Store) -> "Subject":
        """The subject of `handle`. Raises DatasetError if it is not in the store."""
        return cls(handle, store, store.manifest(handle))

    def rows(self, *columns: str) -> pl.DataFrame:
        """Its rows, those columns only."""
        return self.store.frame(self.handle, columns)

    def columns(self) -> list[str]:
        """The names of all its columns."""
        return list(self.store.open(self.handle).schema.names)

    def input(self, name: str) -> AnyHandle:
        """The handle of the parent `name`. Raises DatasetError if the manifest names none."""
        if name not in self.manifest.parents:
            raise DatasetError(f"the manifest of {label(self.handle)} names no parent {name!r}: rerun the stage that makes it")
        return self.manifest.parents[name]

    def parent(self, name: str) -> "Subject":
        """The parent dataset `name`. Raises DatasetError if there is none."""
        handle = self.input(name)
        if not isinstance(handle, Dataset):
            raise DatasetError(f"the parent {name!r} of {label(self.handle)} is {label(handle)}, not a dataset")
        return Subject.of(handle, self.store)

    def setting(self, *path: str) -> Any:
        """The value at `path` in the spec it was computed from. Raises DatasetError if the manifest does not record it."""
        value = self.manifest.computed_by.get("spec", {})
        for name in path:
            if not isinstance(value, dict) or name not in value:
                where = ".".join(path)
                raise DatasetError(f"the manifest of {label(self.handle)} records no {where}: rerun the stage that makes it")
            value = value[name]
        return value


@dataclass(frozen=True)
class Frame:
    """One view of a dataset and what must hold of it."""

    name: str  # what its rows are, in the plural
    key: tuple[str, ...]  # columns that name a row; empty where there is one row only
    build: Callable[[Subject], pl.DataFrame]
    expectations: Callable[[Subject, ChecksConfig], list[Expectation]]


Suite = tuple[Frame, ...]


def finite(*columns: str) -> pl.Expr:
    """Those float columns with NaN and infinities as nulls."""
    return pl.when(pl.col(*columns).is_finite()).then(pl.col(*columns))


def known(rows: pl.DataFrame, parent: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """`rows` with the columns of the parent's row of the same key, and `is_known`: whether there is one."""
    marked = parent.unique(key, maintain_order=True).with_columns(is_known=True)
    return rows.join(marked, on=key, how="left", maintain_order="left").with_columns(pl.col("is_known").fill_null(False))


def present(parent: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The keys of the parent with `is_present`: whether `rows` has one."""
    marked = rows.select(key).unique().with_columns(is_present=True)
    joined = parent.select(key).join(marked, on=key, how="left", maintain_order="left")
    return joined.with_columns(pl.col("is_present").fill_null(False))


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
    return gxe.ExpectColumnValuesToBeInSet(column="is_present", value_set=[True], description=f"no row of {parent} was lost")


def is_finite(column: str) -> Expectation:
    """The values of a column made with `finite` are numbers."""
    return gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"{column} is a finite number")


def is_logp(column: str) -> list[Expectation]:
    """A log-probability is finite and at most 0."""
    bound = gxe.ExpectColumnValuesToBeBetween(column=column, max_value=0, description=f"{column} is at most 0")
    return [is_finite(column), bound]
