"""Shards: the Arrow IPC files of a dataset, and the fingerprint of what they hold together."""

import os
from pathlib import Path

import pyarrow as pa

from wind.errors import DatasetError, first_line
from wind.fingerprints import TableFingerprint


def write_shard(path: Path, table: pa.Table) -> None:
    """Write `table` as the shard `path`."""
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def mapped(path: Path) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """The batches of the shard at `path`, on pages of the file: they take memory while they are looked at."""
    with pa.memory_map(os.fspath(path)) as source, pa.ipc.open_file(source) as reader:
        return [reader.get_batch(index) for index in range(reader.num_record_batches)], reader.schema


def shard_name(index: int) -> str:
    """The file name of shard `index`."""
    return f"part-{index:05d}.arrow"


class Content:
    """The fingerprint and the rows of shards that are added one by one."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._fingerprint: TableFingerprint | None = None
        self._schema: pa.Schema | None = None

    def add(self, path: Path, name: str, *, is_trusted: bool = False) -> int:
        """The rows of the shard at `path`, which counts from now on.

        Raises DatasetError, which calls it `name`, if it cannot be read or does not fit.
        """
        try:
            batches, schema = mapped(path)
            for batch in batches if not is_trusted else ():
                batch.validate(full=True)  # whoever reads an offset that points elsewhere is killed
            if self._fingerprint is None:
                self._fingerprint, self._schema = TableFingerprint(schema), schema
            if schema == self._schema:
                self._fingerprint.update(batches)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DatasetError(f"{name} cannot be read: {first_line(error)}") from error
        if schema != self._schema:
            raise DatasetError(f"{name} has other columns than the shards before it")
        self.rows.append(sum(batch.num_rows for batch in batches))
        return self.rows[-1]

    def hexdigest(self) -> str:
        """The fingerprint of the shards added so far. Raises DatasetError if there are none."""
        if self._fingerprint is None:
            raise DatasetError("a dataset without shards has no fingerprint")
        return self._fingerprint.hexdigest()
