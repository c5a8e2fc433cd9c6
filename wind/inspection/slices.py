"""Slices: the rows of a dataset under one key, found without reading the others.

Rows are sorted by key, so those under the beginning of a key are one slice. A binary search over
the shards and then within one finds it. Shards of a local store are mapped into memory, so that
only what is looked at is read; from an object store, a shard is fetched whole.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa

from wind.errors import DatasetError, first_line
from wind.store.datasets import Store
from wind.store.handles import Dataset, folder_of, label
from wind.store.shards import mapped
from wind.store.storage import LocalStorage

# Mapped shards of a local store cost addresses only; fetched ones are held in memory.
MOST_MAPPED: Final = 4096
MOST_FETCHED: Final = 8
# Columns of any key.
KEYS: Final = ("step", "judge", "opponent", "prompt_id", "sample_index")


class Slices:
    """The datasets of a store, read by key. Threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_local = isinstance(store.storage, LocalStorage)
        self._most = MOST_MAPPED if self._is_local else MOST_FETCHED
        self._files: dict[Dataset, tuple[list[str], list[int]]] = {}
        self._shards: OrderedDict[tuple[Dataset, int], pa.Table] = OrderedDict()
        self._edges: dict[tuple[Dataset, int, tuple[str, ...]], tuple[Any, ...]] = {}
        self._turn = threading.RLock()

    def under(
        self,
        handle: Dataset,
        key: Sequence[str],
        values: Sequence[Any],
        columns: Sequence[str] = (),
    ) -> pa.Table:
        """Return the rows whose first key columns `key` have `values`.

        Args:
            handle: a dataset that is sorted by `key`.
            columns: which to read, where the dataset has them; all if empty.

        Raises DatasetError if a shard cannot be read.
        """
        with self._turn:
            first = self._place(handle, tuple(key), tuple(values), bisect.bisect_left)
            last = self._place(handle, tuple(key), tuple(values), bisect.bisect_right)
            return self._rows(handle, first, last, columns)

    def values(self, handle: Dataset, key: Sequence[str]) -> list[tuple[Any, ...]]:
        """List the different values of the first key columns `key`.

        Each costs one search, so there should be few.
        """
        with self._turn:
            found: list[tuple[Any, ...]] = []
            row = 0
            while row < handle.rows:
                found.append(self._key_at(handle, tuple(key), row))
                row = self._place(handle, tuple(key), found[-1], bisect.bisect_right)
            return found

    def columns(self, handle: Dataset) -> list[str]:
        """Return the names of the columns of `handle`."""
        with self._turn:
            return list(self._shard(handle, 0).column_names)

    def tables(self, handle: Dataset, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield those of `columns` that each shard of `handle` has, shard by shard.

        Raises DatasetError if a shard cannot be read.
        """
        for index in range(len(self._layout(handle)[0])):
            table = self._open(handle, index)
            yield _validated(
                handle, table.select([name for name in columns if name in table.column_names])
            )

    def _place(
        self,
        handle: Dataset,
        key: tuple[str, ...],
        values: tuple[Any, ...],
        search: Callable[..., int],
    ) -> int:
        """Return the row where a binary `search` for `values` ends."""
        _, starts = self._layout(handle)
        shards = range(len(starts) - 1)
        # the last shard whose first row does not lie behind `values`
        shard = max(search(shards, values, key=lambda at: self._edge(handle, at, key)) - 1, 0)
        if not shards or starts[-1] == 0:
            return 0
        table = self._shard(handle, shard)
        columns = [_column(handle, table, name) for name in key]
        within = search(
            range(len(table)), values, key=lambda row: tuple(each[row].as_py() for each in columns)
        )
        return starts[shard] + within

    def _edge(self, handle: Dataset, shard: int, key: tuple[str, ...]) -> tuple[Any, ...]:
        """Return the key of the first row of a shard."""
        at = (handle, shard, key)
        if at not in self._edges:
            self._edges[at] = self._key_at(handle, key, self._layout(handle)[1][shard])
        return self._edges[at]

    def _key_at(self, handle: Dataset, key: tuple[str, ...], row: int) -> tuple[Any, ...]:
        _, starts = self._layout(handle)
        shard = bisect.bisect_right(starts, row) - 1
        table = self._shard(handle, shard)
        return tuple(_column(handle, table, name)[row - starts[shard]].as_py() for name in key)

    def _rows(self, handle: Dataset, first: int, last: int, columns: Sequence[str]) -> pa.Table:
        _, starts = self._layout(handle)
        parts: list[pa.Table] = []
        shard = max(min(bisect.bisect_right(starts, first), len(starts) - 1) - 1, 0)
        while shard < len(starts) - 1 and (not parts or starts[shard] < last):
            table = self._shard(handle, shard)
            begin, end = max(first - starts[shard], 0), min(last, starts[shard + 1]) - starts[shard]
            wanted = [name for name in columns or table.column_names if name in table.column_names]
            parts.append(table.select(wanted).slice(begin, max(end - begin, 0)))
            shard += 1
        if not parts:
            return pa.table({})
        return _validated(handle, pa.concat_tables(parts).combine_chunks())

    def _layout(self, handle: Dataset) -> tuple[list[str], list[int]]:
        """Return the names of the shards that have rows, and their first rows, and the end."""
        if handle not in self._files:
            files = [file for file in self._store.manifest(handle).files if file.rows]
            self._files[handle] = (
                [file.name for file in files],
                [0, *accumulate(file.rows for file in files)],
            )
        return self._files[handle]

    def _shard(self, handle: Dataset, index: int) -> pa.Table:
        at = (handle, index)
        if at in self._shards:
            self._shards.move_to_end(at)
            return self._shards[at]
        table = self._open(handle, index)
        # Following an offset that points elsewhere would kill the process.
        _validated(handle, table.select([name for name in KEYS if name in table.column_names]))
        self._shards[at] = table
        if len(self._shards) > self._most:
            self._shards.popitem(last=False)
        return table

    def _open(self, handle: Dataset, index: int) -> pa.Table:
        names, starts = self._layout(handle)
        where = f"{folder_of(handle)}/{names[index]}"
        try:
            if isinstance(self._store.storage, LocalStorage):
                batches, schema = mapped(self._store.storage.path(where))
                table = pa.Table.from_batches(batches, schema)
            else:
                with self._store.storage.fetched(where) as path, pa.OSFile(str(path)) as file:
                    table = pa.ipc.open_file(file).read_all()
        except (pa.ArrowException, ValueError, OSError) as error:
            raise _damaged(handle, error) from error
        if len(table) != starts[index + 1] - starts[index]:
            raise _damaged(handle, f"{names[index]} has {len(table)} rows")
        return table


def _column(handle: Dataset, table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise _damaged(handle, f"there is no column {name}")
    return table[name]


def _validated(handle: Dataset, table: pa.Table) -> pa.Table:
    try:
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        raise _damaged(handle, error) from error
    return table


def _damaged(handle: Dataset, reason: Exception | str) -> DatasetError:
    what = first_line(reason) if isinstance(reason, Exception) else reason
    return DatasetError(f"{label(handle)} cannot be read: {what}; run `wind verify`")
