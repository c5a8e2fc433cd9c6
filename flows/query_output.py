"""Output of a query, batch by batch: table, JSON, or file."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from flows import show
from wind.errors import ConfigError
from wind.files import atomic
from wind.machine.terminal import json_text, say

# bytes of rows that a table on a terminal can have
MOST_SHOWN = 256 * 2**20


def print_rows(found: pa.RecordBatchReader) -> None:
    """Print the rows as a table with nothing cut off.

    Raises ConfigError if there are more than anybody could look at.
    """
    batches, size = [], 0
    for batch in found:
        batches.append(batch)
        size += batch.nbytes
        if size > MOST_SHOWN:
            raise ConfigError(
                f"the answer has more than {MOST_SHOWN // 2**20} MiB: "
                "write it with --csv or --parquet, or ask for less"
            )
    frame = pl.from_arrow(pa.Table.from_batches(batches, found.schema))
    assert isinstance(frame, pl.DataFrame)
    show.frame(frame)


def print_json(found: pa.RecordBatchReader) -> None:
    """Print the rows as a JSON list, batch by batch.

    Values that JSON cannot represent become null or text.
    """
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
    """Write the rows to a CSV or Parquet file; return their number.

    Writes batch by batch; the file appears once it is complete.
    """
    path = csv or parquet
    assert path is not None
    writer = pyarrow.csv.CSVWriter if csv else pyarrow.parquet.ParquetWriter
    count = 0
    with atomic(path.absolute()) as partial, writer(partial, found.schema) as file:
        for batch in found:
            file.write_batch(batch)
            count += batch.num_rows
    return count
