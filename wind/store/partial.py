"""Unfinished datasets: shards that a stage has finished, not yet published."""

import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from wind.errors import DatasetError, first_line
from wind.fingerprints import stream_digest
from wind.store import schemas, sealed_json
from wind.store.handles import AnyHandle, Dataset, Manifest, StoredFile
from wind.store.shards import Content, check_order, mapped, shard_name, write_shard
from wind.store.stamps import is_ours, refuse, stamped
from wind.store.storage import Entry, Held, Storage, fetched_ahead

Publish = Callable[[str, AnyHandle, Manifest], None]


class Partial:
    """An unfinished dataset: finished shards, and the way to publish them.

    Args:
        storage: where the shards are.
        name: the noun of the dataset.
        folder: where the shards are within the storage.
        held: the lock on the folder; None in a worker whose parent process holds it.
        publish: moves a folder of the storage to where a handle and its manifest say.
    """

    def __init__(
        self, storage: Storage, name: str, folder: str, held: Held | None, publish: Publish
    ) -> None:
        self._storage = storage
        self._name = name
        self._held = held
        self._publish = publish
        self.folder = folder

    def missing(self, shards: int) -> list[int]:
        """Return which of shards 0..`shards`-1 are absent or not as written."""
        stored = {
            entry.name.rpartition("/")[2]: entry for entry in self._storage.files(self.folder)
        }
        return [index for index in range(shards) if not self._is_finished(index, stored)]

    def _is_finished(self, index: int, stored: Mapping[str, Entry]) -> bool:
        """Return whether shard `index` is present, unchanged and older than its record."""
        shard, beside = stored.get(shard_name(index)), stored.get(_name_beside(index))
        if shard is None or beside is None or shard.modified > beside.modified:
            return False
        with contextlib.suppress(DatasetError):
            return self._kept(index)[0].bytes == shard.bytes
        return False

    def beside(self, index: int) -> dict[str, Any]:
        """Return the facts that `write` kept beside shard `index`.

        Raises DatasetError if it is not what was written.
        """
        return self._kept(index)[1]

    def _kept(self, index: int) -> tuple[StoredFile, dict[str, Any]]:
        """Return the manifest entry of shard `index`, and what was kept beside."""
        name = f"{self.folder}/{_name_beside(index)}"
        try:
            kept = sealed_json.read(self._storage.read(name))
            if not is_ours("shard", kept) or kept["folder"] != self.folder:
                refuse(self._storage.address, name)
                raise ValueError("was not written by us")
            return StoredFile.model_validate(kept.pop("file")), kept
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"{self._storage.url}/{name} {first_line(error)}: rerun") from error

    def write(
        self,
        index: int,
        table: pa.Table,
        schema: pa.Schema | None = None,
        *,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit shard `index`, cast to the declared schema.

        The shard counts as finished once the record beside it is kept, `beside` included, which
        lasts until the dataset is published. Raises DatasetError if a column does not fit, or the
        rows are not in order of their key.
        """
        declaration = schemas.declared(self._name)
        table = schemas.conform(table, schema or declaration.schema)
        name, key = shard_name(index), declaration.key
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            checked = pool.submit(check_order, table, key)
            with self._storage.building(f"{self.folder}/{name}") as path:
                write_shard(path, table)
                written = stack.enter_context(path.open("rb"))
                size = path.stat().st_size
                checked.result()
                # while the file is synced, or copied to an object store
                sha256 = pool.submit(stream_digest, written)
            file = StoredFile(name=name, bytes=size, sha256=sha256.result(), rows=table.num_rows)
        kept = {"file": file.model_dump(), **(beside or {}), "folder": self.folder}
        self._storage.write(f"{self.folder}/{_name_beside(index)}", stamped("shard", kept))

    def table(self, shards: int) -> pa.Table:
        """Return the rows of the finished shards 0..`shards`-1.

        They are memory-mapped: pages that nobody reads take no memory.
        """
        tables = []
        for index in range(shards):
            with self._storage.fetched(f"{self.folder}/{shard_name(index)}") as path:
                tables.append(pa.Table.from_batches(*mapped(path)))
        return pa.concat_tables(tables)

    def publish(
        self,
        shards: int,
        *,
        parents: Mapping[str, AnyHandle],
        outputs: Mapping[str, AnyHandle] | None = None,
        computed_by: Mapping[str, Any],
        numbers: Mapping[str, float],
        provenance: Mapping[str, Any],
    ) -> Dataset:
        """Publish shards 0..`shards`-1, all finished, as one dataset and return its handle.

        Raises DatasetError if a shard is missing or not as it was written, StageError if the lock
        was lost to another process.
        """
        files = [self._kept(index)[0] for index in range(shards)]
        content = self._content(files)
        fingerprint, total = content.hexdigest(), sum(content.rows)
        if self._held is not None:
            self._held.check()
        manifest = Manifest(
            kind=self._name,
            fingerprint=fingerprint,
            schema_version=schemas.VERSION,
            rows=total,
            files=files,
            parents=dict(parents),
            outputs=dict(outputs or {}),
            computed_by=dict(computed_by),
            numbers=dict(numbers),
            provenance=dict(provenance),
        )
        handle = Dataset(name=self._name, fingerprint=fingerprint, rows=total)
        self._publish(self.folder, handle, manifest)
        return handle

    def _content(self, files: list[StoredFile]) -> Content:
        """Read the content of `files`.

        Raises DatasetError if one is not as it was written.
        """
        content = Content(schemas.declared(self._name).key)
        names = [file.name for file in files]
        with fetched_ahead(self._storage, self.folder, names, os.path.getsize) as fetched:
            for file, (path, size) in zip(files, fetched, strict=True):
                where = f"{self._storage.url}/{self.folder}/{file.name}"
                if (size, content.add(path, where, is_trusted=True)) != (file.bytes, file.rows):
                    raise DatasetError(f"{where} is not as it was written: rerun")
        return content


def _name_beside(index: int) -> str:
    return f"outputs-{index:05d}.json"
