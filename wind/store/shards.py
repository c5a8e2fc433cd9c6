"""Shards: the Arrow IPC files of a dataset, and their common fingerprint."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wind.errors import DatasetError, first_line
from wind.fingerprints import TableFingerprint


def write_shard(path: Path, table: pa.Table) -> None:
    """Write `table` as the shard `path`."""
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def mapped(path: Path) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """Memory-map the shard at `path`: return its batches and its schema.

    Batches take memory only while they are read.
    """
    with pa.memory_map(os.fspath(path)) as source, pa.ipc.open_file(source) as reader:
        return [
            reader.get_batch(index) for index in range(reader.num_record_batches)
        ], reader.schema


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"part-{index:05d}.arrow"


def check_order(table: pa.Table, key: Sequence[str]) -> None:
    """Raise DatasetError unless `table` is in ascending order of `key`.

    Equal keys pass: uniqueness is left to data checks.
    """
    ascends = np.zeros(max(table.num_rows - 1, 0), dtype=bool)
    is_equal = ~ascends
    for name in key:
        if name not in table.column_names or table[name].null_count:
            raise DatasetError(f"there are rows without {name}, which is of their key")
        column = table[name].combine_chunks()
        above, below = column.slice(0, len(ascends)), column.slice(1)
        try:
            ascends |= is_equal & pc.less(above, below).to_numpy(zero_copy_only=False)
            is_equal &= pc.equal(above, below).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            raise DatasetError(
                f"{name}, which is of their key, has no order: {first_line(error)}"
            ) from error
    descends = ~(ascends | is_equal)
    if descends.any():
        row = int(np.argmax(descends))
        above, below = (_row(table, key, place) for place in (row, row + 1))
        raise DatasetError(f"{below} stands below {above}: rows are sorted by {', '.join(key)}")


def _row(table: pa.Table, key: Sequence[str], row: int) -> str:
    return "/".join(str(table[name][row].as_py())[:12] for name in key)


class Content:
    """The fingerprint and row counts of shards, added one by one."""

    def __init__(self, key: Sequence[str]) -> None:
        self.rows: list[int] = []
        self._key = key
        self._last: pa.Table | None = None  # the last row so far, if any
        self._fingerprint: TableFingerprint | None = None
        self._schema: pa.Schema | None = None

    def add(self, path: Path, name: str, *, is_trusted: bool = False) -> int:
        """Add the shard at `path` and return its number of rows.

        A shard that is not `is_trusted` is validated first. Raises DatasetError, which calls the
        shard `name`, if it cannot be read, has other columns than the shards before it, or is out
        of order after them.
        """
        try:
            batches, schema = mapped(path)
            for batch in batches if not is_trusted else ():
                # Reading an offset that points elsewhere would kill the process.
                batch.validate(full=True)
            if self._fingerprint is None:
                self._fingerprint, self._schema = TableFingerprint(schema), schema
            if schema == self._schema:
                self._fingerprint.update(batches)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DatasetError(f"{name} cannot be read: {first_line(error)}") from error
        if schema != self._schema:
            raise DatasetError(f"{name} has other columns than the shards before it")
        table = pa.Table.from_batches(batches, schema)
        if len(table):
            self._follow(table, name)
        self.rows.append(len(table))
        return len(table)

    def _follow(self, table: pa.Table, name: str) -> None:
        """Check that the first row of `table` follows the row before.

        The order within a shard was checked when it was written.
        """
        first = table.slice(0, 1)
        try:
            check_order(
                first if self._last is None else pa.concat_tables([self._last, first]), self._key
            )
        except DatasetError as error:
            raise DatasetError(f"{name} is out of order: {error}") from error
        self._last = table.slice(len(table) - 1)

    def hexdigest(self) -> str:
        """Return the fingerprint of the shards so far.

        Raises DatasetError if there are none.
        """
        if self._fingerprint is None:
            raise DatasetError("a dataset without shards has no fingerprint")
        return self._fingerprint.hexdigest()
