"""Reproduction: how recomputed content differs from what is stored."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from wind.errors import shown
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, label
from wind.store.schemas import declared


def differences(store: Store, recorded: AnyHandle, again: Store, made: AnyHandle) -> list[str]:
    """List how `made`, in the store `again`, differs from `recorded`, in `store`.

    There is one line for each column, or one for a model; none if the two are equal. Raises
    DatasetError if either cannot be read.
    """
    if made.fingerprint == recorded.fingerprint:
        return []
    if isinstance(recorded, Dataset) and isinstance(made, Dataset):
        rows = list(_rows_that_differ(store, recorded, again, made))
        return rows or ["equal numbers have other bits, such as the sign of a zero"]
    then = {file.name: file.sha256 for file in store.manifest(recorded).files}
    now = {file.name: file.sha256 for file in again.manifest(made).files}
    files = sorted(file for file in then.keys() | now.keys() if then.get(file) != now.get(file))
    return [f"it is {label(made)}, was {label(recorded)}; {', '.join(files)} differ"]


def _rows_that_differ(
    store: Store, recorded: Dataset, again: Store, made: Dataset
) -> Iterator[str]:
    """Yield one line per column that differs, with its first row.

    Memory holds one batch of each side.
    """
    ours, theirs = again.open(made), store.open(recorded)
    if not ours.schema.equals(theirs.schema):
        has, had = (", ".join(each.schema.names) for each in (ours, theirs))
        yield f"it has the columns {has}, had {had}, or other types"
        return
    if made.rows != recorded.rows:
        yield f"it has {made.rows} rows, had {recorded.rows}"
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    start = 0
    for left, right in _paired(ours.to_batches(), theirs.to_batches()):
        for column in ours.schema.names:
            if left[column].equals(right[column]):
                continue
            now, then = left[column].to_pylist(), right[column].to_pylist()
            rows = [
                index
                for index, pair in enumerate(zip(now, then, strict=True))
                if not _is_same(*pair)
            ]
            if rows and column not in first:
                row = left.slice(rows[0], 1).to_pylist()[0]
                key = "/".join(str(row[name])[:12] for name in declared(made.name).key)
                values = f"{shown(now[rows[0]])}, was {shown(then[rows[0]])}"
                first[column] = f"first in row {start + rows[0]} ({key}): {values}"
            counts[column] = counts.get(column, 0) + len(rows)
        start += left.num_rows
    total = min(made.rows, recorded.rows)
    for column, where in first.items():
        yield f"{column} differs in {counts[column]} of {total} rows, {where}"


def _paired(
    one: Iterator[pa.RecordBatch], other: Iterator[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yield pairs of batches, cut so that both cover the same rows."""
    left, right = next(one, None), next(other, None)
    while left is not None and right is not None:
        rows = min(left.num_rows, right.num_rows)
        yield left.slice(0, rows), right.slice(0, rows)
        left = left.slice(rows) if left.num_rows > rows else next(one, None)
        right = right.slice(rows) if right.num_rows > rows else next(other, None)


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # NaN equals NaN here
