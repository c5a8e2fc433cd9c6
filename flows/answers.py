"""Where the answer to a query goes: a table, JSON, or a file, batch by batch."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from flows import show
from wind.files import atomic
from wind.terminal import json_text, say


def print_rows(found: pa.RecordBatchReader) -> None:
    """The rows as a table, nothing cut off."""
    frame = pl.from_arrow(found.read_all())
    assert isinstance(frame, pl.DataFrame)
    show.frame(frame)


def print_json(found: pa.RecordBatchReader) -> None:
    """The rows as a JSON list, batch by batch; what JSON has no word for is null or text."""
    say("[")
    between = ""
    for batch in found:
        part = pl.from_arrow(batch)
        assert isinstance(part, pl.DataFrame)
        for row in part.fill_nan(None).iter_rows(named=True):
            say(between + json_text(row))
            between = ","
    say("]")


def write_rows(found: pa.RecordBatchReader, *, csv: Path | None, parquet: Path | None) -> int:
    """How many rows were written, batch by batch, to a CSV or Parquet file, which appears when it is whole."""
    path = csv or parquet
    assert path is not None
    writer = pyarrow.csv.CSVWriter if csv else pyarrow.parquet.ParquetWriter
    count = 0
    with atomic(path.absolute()) as partial, writer(partial, found.schema) as file:
        for batch in found:
            file.write_batch(batch)
            count += batch.num_rows
    return count
