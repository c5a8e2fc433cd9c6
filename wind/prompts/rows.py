"""Rows of a source, which is JSONL, Parquet or Arrow files.

They are read in the order of the file names. Every error in a row is reported in one line with
the file and the 1-based line (JSONL) or row (Parquet, Arrow).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from wind.errors import InputError, first_line
from wind.nesting import json_value
from wind.store.datasets import Store
from wind.store.handles import Source

BATCH_ROWS = 1024
# bytes of a row: a file without line ends would be read at once
LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """One row of a source, and its location: `prompts.jsonl line 3`."""

    where: str
    fields: dict[str, Any]
    # read from a file whose rows all have the same fields, where null stands for an absent one
    is_columnar: bool = False


def read_rows(store: Store, source: Source, field: str, limit: int | None) -> list[Row]:
    """Return the first `limit` rows of `source`, each with the column `field`.

    Rows are in the order of the file names, and of the rows in each file. Raises InputError, naming
    file and line, if a file or a row cannot be read, a row lacks `field`, or there are no rows at
    all.
    """
    rows: list[Row] = []
    names = sorted(file.name for file in store.manifest(source).files)
    for name in names:
        for row in READERS[Path(name).suffix](store.path(source) / name):
            if field not in row.fields:
                has = ", ".join(row.fields) or "none"
                raise InputError(
                    f"{row.where} has no field {field!r}: "
                    f"name one of its fields with prompts.field ({has})"
                )
            rows.append(row)
            if len(rows) == limit:
                return rows
    if not rows:
        raise InputError(
            f"{', '.join(names)} holds no rows: give prompts.source with at least two prompts"
        )
    return rows


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            where = f"{path.name} line {number}"
            if len(line) > LONGEST_LINE:
                raise InputError(
                    f"{where} has more than {LONGEST_LINE // 2**20} MiB: "
                    "one object per line is needed"
                )
            if line.strip():
                text = line.rstrip(b"\r\n")
                yield Row(
                    where,
                    _json_object(
                        text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text, where
                    ),
                )


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    """Parse one line as a JSON object.

    Raises InputError if it is anything else, or text that UTF-8 cannot encode.
    """
    try:
        fields = json_value(line, parse_constant=_no_number)
        if b"\\u" in line:
            # half a surrogate pair is valid JSON but not text
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 (byte {error.start + 1} of the line): convert the file"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} escapes half of a surrogate pair, which is not a character: correct it"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON ({error.msg} at character {error.pos + 1}): "
            "one object per line is needed"
        ) from error
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): one object per line is needed") from error
    if not isinstance(fields, dict):
        raise InputError(f'{where} is not a JSON object: write it as {{"prompt": ...}}')
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            yield from _batch_rows(path, file.iter_batches(batch_size=BATCH_ROWS))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read as Parquet: {first_line(error)}") from error


def _read_arrow(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow IPC file or stream.

    `datasets` writes streams under the same suffix.
    """
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                with pa.ipc.open_file(source) as reader:
                    yield from _batch_rows(
                        path,
                        (reader.get_batch(index) for index in range(reader.num_record_batches)),
                    )
            else:
                source.seek(0)
                with pa.ipc.open_stream(source) as reader:
                    yield from _batch_rows(path, reader)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read as Arrow: {first_line(error)}") from error


def _batch_rows(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for fields in _in_doubles(batch.slice(start, BATCH_ROWS)).to_pylist():
                number += 1
                yield Row(f"{path.name} row {number}", fields, is_columnar=True)


def _in_doubles(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert narrower floats to the double with the same shortest digits.

    A float32 0.1 becomes 0.1, not 0.10000000149011612.
    """
    for place, column in enumerate(batch.schema):
        doubles = _with_floats(column.type, pa.float64())
        if doubles != column.type:
            values = batch.column(place)
            for number in (pa.float32(), pa.string()):
                values = values.cast(_with_floats(column.type, number))
            batch = batch.set_column(place, column.name, values.cast(doubles))
    return batch


def _with_floats(kind: pa.DataType, number: pa.DataType) -> pa.DataType:
    """Return `kind` with `number` in place of floats narrower than doubles.

    Also replaces them within lists and structs.
    """
    if kind in (pa.float16(), pa.float32()):
        return number
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_floats(field.type, number)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        items = _with_floats(kind.value_type, number)
        return kind if items == kind.value_type else pa.list_(items)
    return kind


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
