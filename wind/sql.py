"""SQL over the datasets of a run, by DuckDB: every noun is a view over all its versions, read lazily from the shards.

Each view has the dataset's columns and, where it has none of that name, `iteration` and `version` (RUN@NUMBER). `versions` has
one row per version. The views are in memory and the query reaches nothing else: no file, no network, no setting.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from wind.datasets import Store
from wind.errors import ConfigError
from wind.fingerprints import canonical
from wind.handles import Dataset, label
from wind.versions import Version

BATCH_ROWS = 65536


@contextmanager
def answer(store: Store, versions: Sequence[Version], query: str) -> Iterator[pa.RecordBatchReader]:
    """The rows that `query` gives over the datasets of `versions`, batch by batch.

    Raises ConfigError with DuckDB's own message if the query is wrong, also while the batches are read.
    """
    with duckdb.connect() as connection, _told(versions):
        for name in _nouns(versions):
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.IGNORECASE):
                _view(connection, store, versions, name)
        connection.register("versions", _table(versions))
        for setting in ("enable_external_access = false", "python_enable_replacements = false", "lock_configuration = true"):
            connection.execute(f"SET {setting}")
        found = connection.sql(query)
        if found is None:
            raise ConfigError("the query gives no rows: begin it with SELECT")
        yield found.to_arrow_reader(BATCH_ROWS)


@contextmanager
def _told(versions: Sequence[Version]) -> Iterator[None]:
    """DuckDB's errors in one line; a name that is not there is told which are."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        message = " ".join(str(error).split("LINE 1:")[0].split())
        if isinstance(error, duckdb.CatalogException):
            message = f"{message.split(' Did you mean')[0]} There are {', '.join([*_nouns(versions), 'versions'])}"
        raise ConfigError(message) from error


def _nouns(versions: Sequence[Version]) -> list[str]:
    """The names of the datasets that any of `versions` has."""
    return list(dict.fromkeys(name for version in versions for name in version.content.datasets))


def _view(connection: duckdb.DuckDBPyConnection, store: Store, versions: Sequence[Version], name: str) -> None:
    """Let `name` be the rows of that dataset in all `versions` that have it."""
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
        further = {"iteration": str(version.content.iteration), "version": f"'{version.run}@{version.number}'"}
        added = [f"{value} AS {column}" for column, value in further.items() if column not in columns[handle]]
        selects.append(f"SELECT {', '.join(['*', *added])} FROM {_quoted(label(handle))}")
    connection.execute(f"CREATE VIEW {_quoted(name)} AS {' UNION ALL BY NAME '.join(selects)}")


def _table(versions: Sequence[Version]) -> pa.Table:
    """One row per version."""
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
    kinds = {name: pa.int64() if name in whole else pa.float64() if name in real else pa.string() for name in rows[0]}
    return pa.Table.from_pylist(rows, pa.schema(kinds.items()))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
