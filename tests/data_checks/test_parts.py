"""A frame gets the same verdict in parts as in one piece, in the memory of a part."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pytest

from data_checks import base
from data_checks.base import Subject
from data_checks.results import contents
from data_checks.validation import validate
from wind.config.checks import ChecksConfig
from wind.errors import DataCheckError
from wind.store.datasets import Store
from wind.store.handles import Dataset

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain

Rows = list[dict[str, Any]]  # of four prompts with four samples each


def nothing(rows: Rows) -> None:
    return


def many_faults(rows: Rows) -> None:
    """At least one for each expectation on rows, in the first prompt and in the last."""
    for row in (rows[0], rows[1], rows[3], rows[13], rows[14], rows[15]):
        row.update(win_rate=float("nan"))
    rows[5].update(win_rate=1.25)
    rows[12].update(win_rate=-0.25, ties=3)
    rows[4].update(wins=3, ties=3)
    rows[8].update(rank=7)
    rows.append(rows[0] | {"prompt_id": "f" * 32})
    rows.insert(13, dict(rows[12]))
    del rows[6]
    rows.insert(1, dict(rows[0]))


def all_ties_and_upside_down(rows: Rows) -> None:
    for row in rows[:12]:
        row.update(win_rate=1 - row["win_rate"], wins=0, ties=3, losses=0, rank=5 - row["rank"])
    rows[13]["win_rate"], rows[15]["win_rate"] = rows[15]["win_rate"], rows[13]["win_rate"]


def in_shards(store: Store, handle: Dataset, sizes: tuple[int, ...]) -> Dataset:
    """The same rows, parents and spec, cut into shards anew."""
    manifest, table = store.manifest(handle), store.read(handle)
    store.storage.delete(f"datasets/{handle.name}/{handle.fingerprint}")
    bounds = [sum(sizes[:place]) for place in range(len(sizes))]
    with store.partial(handle.name, "shards") as partial:
        for index, (start, size) in enumerate(zip(bounds, sizes, strict=True)):
            partial.write(index, table.slice(start, size))
        facts: Any = {"parents": manifest.parents, "computed_by": manifest.computed_by}
        return partial.publish(len(sizes), **facts, numbers={}, provenance={})


def verdict(store: Store, handle: Dataset) -> tuple[str, Any]:
    message = ""
    try:
        validate(handle, store, ChecksConfig())
    except DataCheckError as error:
        message = str(error)
    content = contents(store, handle)
    assert content is not None
    del (
        content["page_sha256"],
        content["digest"],
        content["stamp"],
    )  # the page shows 3 or 3.0: pandas has floats where values are missing
    return message, json.loads(json.dumps(content), parse_float=lambda text: round(float(text), 12))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [nothing, many_faults, all_ties_and_upside_down])
def test_parts_add_up_to_the_whole(
    chain: "Chain", monkeypatch: pytest.MonkeyPatch, fault: Callable[[Rows], None]
) -> None:
    store, rows = chain.store, 18 if fault is many_faults else 16
    handle = in_shards(store, chain.dataset("win_rates", fault), (5, 0, rows - 5))
    whole = verdict(store, handle)
    monkeypatch.setattr(base, "ROWS_AT_ONCE", 6)
    assert len(Subject.of(handle, store).parts()) == 3
    assert verdict(store, handle) == whole
    assert bool(whole[0]) is (fault is not nothing)


def test_every_row_is_in_one_part_with_its_prompt(
    chain: "Chain", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "ROWS_AT_ONCE", 3)
    store = chain.store
    handle = in_shards(store, chain.dataset("win_rates", many_faults), (5, 0, 13))
    whole = Subject.of(handle, store)
    parts = whole.parts()
    rows = [part.rows("prompt_id", "rank") for part in parts]
    assert len(parts) > 2
    assert sum(map(len, rows)) == 18
    prompts = [set(frame["prompt_id"]) for frame in rows]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    key = ["prompt_id", "rank"]
    assert pl.concat(rows).sort(key).equals(whole.rows(*key).sort(key))
    parents = [set(part.parent("rewards").rows("prompt_id")["prompt_id"]) for part in parts]
    assert sum(map(len, parents)) == len(set.union(*parents)) == 4
    assert all(parent <= own for parent, own in zip(parents, prompts, strict=True))


PEAK = """
import sys
from pathlib import Path
from data_checks.validation import validate
from wind.config.checks import ChecksConfig
from wind.store.datasets import Store
from wind.store.handles import Dataset

def memory(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

store, peaks = Store(sys.argv[1]), []
for text in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = memory("VmRSS")
    validate(Dataset.model_validate_json(text), store, ChecksConfig())
    peaks.append(memory("VmHWM") - began)
print(*peaks)
"""


def chained(store: Store, shards: int, prompts: int) -> Dataset:
    """Win rates of two samples of each prompt, the first better."""
    names = [f"{index:032x}" for index in range(shards * prompts)]
    schema = {"sample_index": pa.int32(), "reward": pa.float64()}
    facts: Any = {"computed_by": {}, "numbers": {}, "provenance": {}}

    def shard(index: int, columns: dict[str, list[Any]]) -> pa.Table:
        own = names[index * prompts : (index + 1) * prompts]
        values = {
            name: pa.array(pair * prompts, schema.get(name)) for name, pair in columns.items()
        }
        return pa.table({"prompt_id": [name for name in own for _ in range(2)], **values})

    rewards: dict[str, list[Any]] = {"sample_index": [0, 1], "reward": [1.0, 0.0]}
    rates: dict[str, list[Any]] = {
        "sample_index": [0, 1],
        "win_rate": [1.0, 0.0],
        "wins": [1, 0],
        "ties": [0, 0],
        "losses": [0, 1],
        "rank": [1, 2],
    }
    parents: dict[str, Any] = {}
    for name, columns in (("rewards", rewards), ("win_rates", rates)):
        with store.partial(name, str(shards)) as partial:
            for index in range(shards):
                partial.write(index, shard(index, columns))
            handle = partial.publish(shards, parents=parents, **facts)
        parents = {name: handle}
    return handle


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
def test_memory_is_that_of_a_part(store: Store) -> None:
    """Three times the rows, in parts of the size of the smaller one: the peak grows by less than a
    third.
    """
    code = PEAK.replace(
        "store, peaks",
        "import data_checks.base\ndata_checks.base.ROWS_AT_ONCE = 50_000\nstore, peaks",
    )
    # the first warms up
    handles = [
        chained(store, *size).model_dump_json() for size in ((1, 10), (1, 25_000), (3, 25_000))
    ]
    ran = subprocess.run(
        [sys.executable, "-c", code, str(store.root), *handles],
        check=True,
        capture_output=True,
        text=True,
    )
    _, one, three = map(int, ran.stdout.split())
    assert three < one * 4 / 3 + 10_000
