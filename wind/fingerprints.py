"""Fingerprints: sha256 over content alone.

Times, hosts, paths, and the division of rows into shards do not enter. A table's fingerprint hashes
each leaf of each column as one stream per kind of content (validity, lengths, values), so it is the
same whatever the shard and chunk boundaries were.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# that hash at once, beside the one that reads ahead
THREADS = 2

T = TypeVar("T")
R = TypeVar("R")


def digest(value: Any) -> str:
    """Return the sha256 hex digest of a JSON-able value in canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return a JSON-able value as text in canonical form.

    Keys are sorted, there are no spaces, and NaN raises ValueError.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def file_digest(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return stream_digest(file)


def stream_digest(file: BufferedReader) -> str:
    """Return the sha256 hex digest of the rest of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def ahead(compute: Callable[[T], R], items: Sequence[T]) -> Iterator[Iterator[R]]:
    """Compute items in order, one ahead of the caller.

    A second thread computes. The context manager gives an iterator over `compute` of the `items`.
    That pays off for digests, since hashing releases the interpreter's lock. Items that were not
    started when the block ends are not computed.

    A generator that ended its thread by itself would do so when it is collected, in any thread; in
    one that is just starting it would wait forever.
    """
    with ThreadPoolExecutor(1) as pool:
        yield _in_order(pool, compute, items)


def _in_order(
    pool: ThreadPoolExecutor, compute: Callable[[T], R], items: Sequence[T]
) -> Iterator[R]:
    waiting = [pool.submit(compute, item) for item in items[:1]]
    for index in range(len(items)):
        result = waiting.pop().result()
        if index + 1 < len(items):
            waiting.append(pool.submit(compute, items[index + 1]))
        yield result


class TableFingerprint:
    """Accumulates the fingerprint of a table that arrives in batches.

    The batches must come in row order.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows = 0
        self._streams: dict[str, Any] = {}

    def update(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Add `batches`, whose schema must be the declared one.

        Their columns are hashed in parallel.
        """
        # An empty batch has no content, but its empty streams would be counted.
        filled = [batch for batch in batches if batch.num_rows]
        self._rows += sum(batch.num_rows for batch in filled)

        def add(place: int) -> None:
            field = self._schema.field(place)
            for batch in filled:
                self._add(field.name, field, batch.column(place))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(add, range(len(self._schema))))

    def hexdigest(self) -> str:
        """Return the fingerprint of everything added so far."""
        schema = [[field.name, str(field.type), field.nullable] for field in self._schema]
        return digest(
            [
                schema,
                self._rows,
                {name: stream.hexdigest() for name, stream in self._streams.items()},
            ]
        )

    def _stream(self, name: str, content: Any) -> None:
        self._streams.setdefault(name, hashlib.sha256()).update(content)

    def _add(self, name: str, field: pa.Field, column: pa.Array) -> None:
        if field.nullable:
            self._stream(
                f"{name}?", np.ascontiguousarray(column.is_valid().to_numpy(zero_copy_only=False))
            )
            column = column.drop_null()
        kind = field.type
        if pa.types.is_list(kind):
            self._stream(f"{name}#", pc.list_value_length(column).to_numpy())
            self._add(f"{name}[]", kind.value_field, column.flatten())
        elif pa.types.is_struct(kind):
            for child, values in zip(kind, column.flatten(), strict=True):
                self._add(f"{name}.{child.name}", child, values)
        elif pa.types.is_string(kind):
            self._stream(f"{name}#", pc.binary_length(column).to_numpy())
            self._stream(f"{name}=", _string_bytes(column))
        else:
            self._stream(f"{name}=", np.ascontiguousarray(column.to_numpy(zero_copy_only=False)))


def _string_bytes(column: pa.Array) -> memoryview:
    """Return the UTF-8 bytes of a string array, end to end.

    The array has no nulls.
    """
    _, offsets_buffer, data = column.buffers()
    if data is None or len(column) == 0:
        return memoryview(b"")
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[
        column.offset : column.offset + len(column) + 1
    ]
    return memoryview(data)[int(offsets[0]) : int(offsets[-1])]
