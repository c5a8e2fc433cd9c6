"""Schemas evolve: what an older release stored is verified and read by this one, with null where a
column came later.
"""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from wind.errors import DatasetError
from wind.store import schemas, sealed_json
from wind.store.datasets import Store
from wind.store.handles import Dataset

STORED = Path(__file__).parent / "schema_version_1"


def put(store: Store, name: str, version: int = 1) -> Dataset:
    """The dataset `name` as a release with schema version 1 stored it; its manifest may claim
    another.
    """
    fields = json.loads((STORED / name / "manifest.json").read_bytes())
    handle = Dataset(name=name, fingerprint=fields["fingerprint"], rows=fields["rows"])
    shutil.copytree(STORED / name, store.path(handle))
    if version != 1:
        (store.path(handle) / "manifest.json").write_bytes(
            sealed_json.encode(fields | {"schema_version": version})
        )
    return handle


@pytest.mark.parametrize("name", [path.name for path in sorted(STORED.iterdir())])
def test_what_version_1_stored_is_read(store: Store, name: str) -> None:
    handle = put(store, name)
    assert store.verify(handle).schema_version == 1
    table = store.read(handle)
    assert table.num_rows == handle.rows > 0
    assert set(schemas.SCHEMAS[name].names) <= set(table.column_names)
    assert table.column("prompt_id").to_pylist() == sorted(table.column("prompt_id").to_pylist())


def test_a_column_that_came_later_is_null(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = put(store, "rewards")
    later = pa.schema([*schemas.SCHEMAS["rewards"], pa.field("spread", pa.float64())])
    monkeypatch.setitem(schemas.SCHEMAS, "rewards", later)
    monkeypatch.setattr(schemas, "VERSION", 2)
    table = store.read(handle)
    assert table.column_names == ["prompt_id", "sample_index", "reward", "spread"]
    assert table.column("spread").null_count == table.num_rows == 8
    assert store.read(handle, ["spread"], shard=1).to_pydict() == {"spread": [None] * 4}
    assert store.frame(handle)["reward"].to_list() == [float(row) for row in range(8)]
    store.verify(handle)  # its fingerprint is that of its own columns

    with store.partial("rewards", "key") as partial:
        partial.write(0, table)
        new = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    assert store.manifest(new).schema_version == 2
    assert new != handle


def test_a_column_that_may_not_be_null_is_missed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = put(store, "rewards")
    monkeypatch.setitem(
        schemas.SCHEMAS,
        "rewards",
        pa.schema([*schemas.SCHEMAS["rewards"], pa.field("spread", pa.float64(), nullable=False)]),
    )
    monkeypatch.setattr(schemas, "VERSION", 2)
    with pytest.raises(DatasetError, match="rewards of schema version 1 lacks spread: rerun"):
        store.read(handle)


def test_a_newer_release_is_asked_for(store: Store) -> None:
    with pytest.raises(
        DatasetError,
        match=rf"rewards has schema version 9, and this release knows {schemas.VERSION}: update it",
    ):
        store.read(put(store, "rewards", version=9))
