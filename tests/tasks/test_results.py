"""The records of task results: whatever befalls one, it is a hit for its own key or none, and never
a crash.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from tasks.caching import _look_up
from tasks.run import Run
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset

KEY = "13d1fcea204f843b4830e69822423e64"
OTHER = "9bfa57ba1fd35dd8ff4c3c1d3c0ac4b1"


def publish(store: Store, value: float) -> Dataset:
    with store.partial("training", str(value)) as partial:
        partial.write(0, pa.table({"step": [1], "metric": ["loss"], "value": [value]}))
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def record(store: Store, key: str, handle: AnyHandle) -> Path:
    """What Prefect 3.7 writes for a task's result."""
    path = store.root / "results" / key
    path.parent.mkdir(exist_ok=True)
    metadata = {
        "storage_key": str(path),
        "expiration": None,
        "serializer": {"type": "json"},
        "prefect_version": "3.7.7",
    }
    path.write_text(
        json.dumps({"metadata": metadata, "result": json.dumps(handle.model_dump(mode="json"))})
    )
    return path


def hit(store: Store, key: str = KEY) -> AnyHandle | None:
    """What a run would take from the cache."""
    found, _ = _look_up(cast(Run[Any], SimpleNamespace(store=store)), key)
    return found if found is not None and store.is_whole(found) else None


@pytest.fixture
def handles(store: Store) -> tuple[Dataset, Dataset]:
    one, other = publish(store, 0.5), publish(store, 0.25)
    record(store, KEY, one)
    record(store, OTHER, other)
    return one, other


def test_a_bit_of_every_byte(store: Store, handles: tuple[Dataset, Dataset]) -> None:
    path = store.root / "results" / KEY
    content = path.read_bytes()
    assert hit(store) == handles[0]
    for position in range(len(content)):
        path.write_bytes(
            content[:position]
            + bytes([content[position] ^ 1 << position % 8])
            + content[position + 1 :]
        )
        assert hit(store) in (handles[0], None)


def test_every_length(store: Store, handles: tuple[Dataset, Dataset]) -> None:
    path = store.root / "results" / KEY
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert hit(store) is None


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"result": 1}',
        b"[" * 5000,
        b"\xff\xfe",
        b'{"metadata": [], "result": "{}"}',
    ],
)
def test_other_content(store: Store, handles: tuple[Dataset, Dataset], content: bytes) -> None:
    (store.root / "results" / KEY).write_bytes(content)
    assert hit(store) is None


def test_the_record_of_another_key_is_no_hit(
    store: Store, handles: tuple[Dataset, Dataset]
) -> None:
    shutil.copyfile(store.root / "results" / OTHER, store.root / "results" / KEY)
    assert hit(store) is None
    assert hit(store, OTHER) == handles[1]


def test_a_folder_or_nothing_is_no_hit(store: Store, handles: tuple[Dataset, Dataset]) -> None:
    path = store.root / "results" / KEY
    path.unlink()
    assert hit(store) is None
    path.mkdir()
    assert hit(store) is None


def test_another_count_is_no_hit(store: Store, handles: tuple[Dataset, Dataset]) -> None:
    record(store, KEY, handles[0].model_copy(update={"rows": 2}))
    assert hit(store) is None
