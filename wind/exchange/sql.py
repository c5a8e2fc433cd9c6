"""SQL over the datasets of a run, by DuckDB.

Each noun is a view over all versions.

A view reads the shards lazily. It has the dataset's columns and, unless the dataset has columns of
those names itself, `iteration` and `version` (RUN@NUMBER). The table `versions` has one row per
version. The views are in memory and a query can reach nothing else: no file, no network, no
setting. Its memory is bounded; beyond that it spills to disk.
"""

import os
import re
import resource
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from wind.errors import ConfigError
from wind.fingerprints import canonical
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, label
from wind.store.versions import Version

BATCH_ROWS = 65536
BUFFERS: Final = "1GB"  # what DuckDB keeps in memory for sorts, joins and groups
# Bytes that the process may allocate on top of what it already has. DuckDB does not count strings
# as part of BUFFERS.
MEMORY: Final = 2 * 2**30
TOO_LARGE: Final = (
    f"the query needs more than {MEMORY // 2**30} GiB of memory: "
    "ask for fewer or shorter values at once"
)


@contextmanager
def answer(store: Store, versions: Sequence[Version], query: str) -> Iterator[pa.RecordBatchReader]:
    """Run `query` over the datasets of `versions`, in batches of rows.

    Raises ConfigError, also while the batches are read: with DuckDB's own message if the query is
    wrong, or if it needs more than MEMORY.
    """
    with _one_line_errors([*_nouns(versions), "versions"]), _connection() as connection:
        for name in _nouns(versions):
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.IGNORECASE):
                _view(connection, store, versions, name)
        connection.register("versions", _table(versions))
        _lock(connection)
        found = connection.sql(query)
        if found is None:
            raise ConfigError("the query gives no rows: begin it with SELECT")
        yield found.to_arrow_reader(BATCH_ROWS)


def select(store: Store, handle: AnyHandle, *, where: str | None, limit: int) -> pa.Table:
    """Return the first `limit` rows that meet the SQL condition `where`.

    Raises ConfigError if the condition is not a single SQL expression, or needs more than MEMORY.
    """
    if not isinstance(handle, Dataset):
        raise ConfigError(
            f"{label(handle)} is not a dataset: its files are in {store.where(handle)}"
        )
    with _one_line_errors(["dataset"], f"--where {where!r}: "), _connection() as connection:
        connection.register("dataset", store.open(handle))
        _lock(connection)
        rows = connection.table("dataset")
        if where:
            # On a line of its own, between parentheses, only an expression parses: not one that is
            # followed by a comment, for instance.
            connection.extract_statements(f"SELECT (\n{where}\n)")
            rows = rows.filter(duckdb.SQLExpression(where))
        return rows.limit(limit).to_arrow_table()


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database for the block, with bounded memory."""
    spilled = Path(tempfile.gettempdir(), f"wind-sql-{os.getpid()}-{secrets.token_hex(4)}")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = _taken() + MEMORY
    try:
        with duckdb.connect(
            config={"memory_limit": BUFFERS, "temp_directory": str(spilled)}
        ) as connection:
            # After two seconds it would stand in the output.
            connection.execute("SET enable_progress_bar = false")
            if soft == resource.RLIM_INFINITY or allowed < soft:
                resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
            yield connection
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        shutil.rmtree(spilled, ignore_errors=True)


def _taken() -> int:
    """Return the data memory of this process, in bytes.

    It is counted as RLIMIT_DATA does.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    """Restrict the connection to its views, for good."""
    for setting in (
        "enable_external_access = false",
        "python_enable_replacements = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


@contextmanager
def _one_line_errors(views: Sequence[str], where: str = "") -> Iterator[None]:
    """Turn DuckDB's errors into ConfigErrors of one line that begins with `where`.

    For an unknown name, the message lists the `views` that exist.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise ConfigError(f"{where}{TOO_LARGE}") from error
    except (duckdb.Error, pa.ArrowException) as error:
        message = " ".join(str(error).split("LINE 1:")[0].split())
        if isinstance(error, duckdb.CatalogException):
            message = f"{message.split(' Did you mean')[0]} There are {', '.join(views)}"
        raise ConfigError(f"{where}{message}") from error
    except OSError as error:  # DuckDB's errors while its rows are read through Arrow
        if error.errno is not None:
            raise
        message = " ".join(str(error).split())
        # a column of more than 2 GiB
        is_large = message.startswith("Out of Memory") or "Arrow Appender" in message
        raise ConfigError(f"{where}{TOO_LARGE if is_large else message}") from error


def _nouns(versions: Sequence[Version]) -> list[str]:
    """List the names of the datasets that any of `versions` has."""
    return list(dict.fromkeys(name for version in versions for name in version.content.datasets))


def _view(
    connection: duckdb.DuckDBPyConnection, store: Store, versions: Sequence[Version], name: str
) -> None:
    """Create the view `name` over that dataset in all `versions`.

    Versions without the dataset are skipped.
    """
    selects = []
    columns: dict[Dataset, list[str]] = {}  # an unchanged dataset is in many versions
    for version in versions:
        handle = version.content.datasets.get(name)
        if handle is None:
            continue
        if handle not in columns:
            shards = store.open(handle)
            connection.register(label(handle), shards)
            columns[handle] = shards.schema.names
        further = {
            "iteration": str(version.content.iteration),
            "version": _text(f"{version.run}@{version.number}"),
        }
        added = [
            f"{value} AS {column}"
            for column, value in further.items()
            if column not in columns[handle]
        ]
        selects.append(f"SELECT {', '.join(['*', *added])} FROM {_quoted(label(handle))}")
    connection.execute(f"CREATE VIEW {_quoted(name)} AS {' UNION ALL BY NAME '.join(selects)}")


def _table(versions: Sequence[Version]) -> pa.Table:
    """Return the table `versions`, one row per version."""
    rows = [
        {
            "version": f"{version.run}@{version.number}",
            "id": version.id,
            "run": version.run,
            "number": version.number,
            "iteration": version.content.iteration,
            "previous": version.content.previous,
            "model_in": version.content.model_in.fingerprint,
            "model_out": version.content.model_out.fingerprint,
            "reference": version.content.reference.fingerprint,
            "seconds": sum(version.seconds.values()),
            "published": version.published,
            "recipe": canonical(version.content.recipe),
        }
        for version in versions
    ]
    whole, real = ("number", "iteration"), ("seconds", "published")
    kinds = {
        name: pa.int64() if name in whole else pa.float64() if name in real else pa.string()
        for name in rows[0]
    }
    return pa.Table.from_pylist(rows, pa.schema(kinds.items()))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
