"""The store under any interleaving of writers, crashes and readers: what was published stays
readable, and named by its rows.
"""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from wind.audit.verification import Verification
from wind.fingerprints import digest
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.handles import Dataset
from wind.store.partial import Partial
from wind.store.pins import open_pin_set

Rows = tuple[tuple[int, float], ...]  # step and value, ordered by step
# -0.0 equals 0.0 here, and in no fingerprint
values = st.floats(-1, 1, width=16).map(lambda value: value + 0.0)
contents = st.lists(values, max_size=5).map(lambda drawn: tuple(enumerate(drawn)))


def table(rows: Sequence[tuple[int, float]]) -> pa.Table:
    return pa.table(
        {
            "step": pa.array([step for step, _ in rows], pa.int32()),
            "metric": ["loss"] * len(rows),
            "value": pa.array([value for _, value in rows], pa.float64()),
        }
    )


@dataclass
class Writer:
    """A computation in progress: its rows, cut into shards, of which some are written."""

    rows: Rows
    cuts: tuple[int, ...]
    key: str
    lock: ExitStack
    partial: Partial
    missing: set[int] = field(default_factory=set)

    def shard(self, index: int) -> pa.Table:
        bounds = (0, *self.cuts, len(self.rows))
        return table(self.rows[bounds[index] : bounds[index + 1]])


class StoreMachine(RuleBasedStateMachine):
    writers: Bundle[Writer] = Bundle("writers")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder)
        self.published: dict[Dataset, Rows] = {}
        self.open: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(target=writers, rows=contents, data=st.data())
    def start(self, rows: Rows, data: st.DataObject) -> Any:
        """A writer of `rows`, new or come back after a crash; one at a time for each key, as the
        lock has it.
        """
        cuts = tuple(sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3))))
        key = digest([rows, cuts])
        if key in self.open:
            return multiple()
        self.open.add(key)
        lock = ExitStack()
        partial = lock.enter_context(self.store.partial("training", key))
        missing = set(partial.missing(len(cuts) + 1))
        return Writer(rows, cuts, key, lock, partial, missing)

    @rule(writer=writers, data=st.data())
    def write(self, writer: Writer, data: st.DataObject) -> None:
        if writer.missing and writer.key in self.open:
            index = data.draw(st.sampled_from(sorted(writer.missing)))
            writer.partial.write(index, writer.shard(index))
            writer.missing.remove(index)

    @rule(writer=consumes(writers))
    def finish(self, writer: Writer) -> None:
        """The name of what is published depends on its rows alone, however they were cut, and in
        whatever order written.
        """
        for index in sorted(writer.missing, reverse=True):
            writer.partial.write(index, writer.shard(index))
        facts: dict[str, Any] = {
            "parents": {},
            "computed_by": {},
            "numbers": {},
            "provenance": {"host": writer.key},
        }
        handle = writer.partial.publish(len(writer.cuts) + 1, **facts)
        writer.lock.close()
        self.open.remove(writer.key)
        assert handle.rows == len(writer.rows)
        known = {rows: dataset for dataset, rows in self.published.items()}
        assert known.get(writer.rows, handle) == handle
        assert self.published.get(handle, writer.rows) == writer.rows
        self.published[handle] = writer.rows

    @rule(writer=consumes(writers))
    def crash(self, writer: Writer) -> None:
        """Its lock is freed, its finished shards stay."""
        writer.lock.close()
        self.open.remove(writer.key)

    @rule(data=st.data())
    def read_lazily_what_others_publish_again(self, data: st.DataObject) -> None:
        """Somebody who opened a dataset before it was published once more reads it to the end."""
        if self.published:
            handle = data.draw(
                st.sampled_from(sorted(self.published, key=lambda each: each.fingerprint))
            )
            opened = self.store.open(handle)
            with self.store.partial("training", digest("again")) as partial:
                partial.write(0, table(self.published[handle]))
                assert (
                    partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
                    == handle
                )
            assert pl.DataFrame(opened.to_table())["value"].to_list() == [
                value for _, value in self.published[handle]
            ]

    @rule(data=st.data())
    def collect_what_no_run_holds(self, data: st.DataObject) -> None:
        """Beside the writers, whose finished shards stay."""
        every = sorted(self.published, key=lambda each: each.fingerprint)
        kept = data.draw(st.sets(st.sampled_from(every))) if every else set()
        with open_pin_set(self.store.storage) as name:
            running = Store(self.folder, pin_set=name)
            assert all(running.pin_if_whole(handle) for handle in kept)
            collect(self.store)
        self.published = {handle: rows for handle, rows in self.published.items() if handle in kept}

    @invariant()
    def everything_published_is_readable(self) -> None:
        for handle, rows in getattr(self, "published", {}).items():
            assert self.store.is_whole(handle)
            frame = self.store.frame(handle)
            assert list(
                zip(frame["step"].to_list(), frame["value"].to_list(), strict=True)
            ) == list(rows)

    @rule()
    def verify(self) -> None:
        verification = Verification(self.store)
        verification.everything()
        assert verification.findings == []
        assert set(self.store.handles("training")) == set(self.published)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
