"""Reproduction: a stored dataset computed again from the spec that its manifest keeps, in a store of its own, and compared."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.running import device_of
from tasks.workers import Kind, Pool
from wind.config import RunConfig
from wind.datasets import AnyHandle, Dataset, Manifest, Store, label
from wind.errors import ConfigError
from wind.fingerprints import code_digest
from wind.provenance import git_state, packages
from wind.schemas import KEYS
from wind.stages import Job, Place, parse, run

LIGHT = ("win_rates", "selections", "evaluation", "metrics", "comparison", "rates")  # a run computes them in its own process


@dataclass(frozen=True)
class Reproduction:
    """What became of computing a dataset again."""

    recorded: str  # fingerprint
    computed: str
    differences: list[str]  # of content: none if it was reproduced
    changed: list[str]  # what computed it now and then


def reproduced(store: Store, handle: Dataset, scratch: Path | None = None) -> Reproduction:
    """`handle` computed again in a temporary store below `scratch`, by default below the store, and compared with what is stored.

    The inputs are read where they are. Raises ConfigError if the manifest keeps no spec, and whatever the stage itself raises.
    """
    before = store.manifest(handle)
    recorded = before.computed_by
    if not isinstance(recorded.get("stage"), str) or not isinstance(recorded.get("spec"), dict):
        raise ConfigError(f"{label(handle)} was published without a spec: it cannot be computed again")
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="reproduced-", dir=scratch)) if scratch else store.scratch("reproduced")
    try:
        place = Place(root=str(folder.absolute() / "store"), device=device_of(RunConfig(run="reproduction")))
        modules = import_module(f"tasks.{recorded['stage']}").COMPUTED_BY
        job = Job(stage=recorded["stage"], spec=recorded["spec"], place=place, code=code_digest(modules))
        _, spec, again = parse(job)
        for parent in spec.parents().values():
            again.path(parent).parent.mkdir(parents=True, exist_ok=True)
            if not again.path(parent).is_symlink():
                os.symlink(store.path(parent).absolute(), again.path(parent))
        made = _computed(job, folder / "logs")
        if made.name != handle.name:  # the training within an on-policy stage
            made = Dataset.model_validate(again.manifest(made).outputs[handle.name].model_dump())
        after = again.manifest(made)
        differences = _differences(store, handle, again, made)
        for name, output in before.outputs.items():
            differences += _output_that_differs(name, store, output, again, after.outputs.get(name))
        return Reproduction(handle.fingerprint, made.fingerprint, differences, list(_changed(before, job, again)))
    finally:
        shutil.rmtree(folder)


def _computed(job: Job, logs: Path) -> Dataset:
    """The dataset of `job`, computed where a run computes it."""
    if job.stage in LIGHT:
        return run(job, lambda done, total: None)
    kind: Kind = "training" if job.stage in ("training", "rollouts") else "transformers"
    if job.spec.get("sampling", {}).get("backend") == "vllm":
        kind = "vllm"
    with closing(Pool(RunConfig(run="reproduction").workers, job.place.device, logs)) as pool:
        return pool.compute(job, kind, lambda done, total: None)


def _changed(before: Manifest, job: Job, again: Store) -> Iterator[str]:
    """What of code, packages and interpreter is not what it was."""
    if before.computed_by.get("code", job.code) != job.code:
        yield f"the code of {job.stage} is {job.code[:12]}, was {before.computed_by['code'][:12]}"
    then = before.provenance
    now = {"python": platform.python_version(), **git_state(again)}
    for name in ("python", "git_revision", "git_dirty"):
        if name in then and name in now and then[name] != now[name]:
            yield f"{name} is {now[name]}, was {then[name]}"
    versions = then.get("packages", {})
    for name in sorted({*versions, *packages()} if versions else ()):
        if versions.get(name) != packages().get(name):
            yield f"{name} is {packages().get(name, 'not there')}, was {versions.get(name, 'not there')}"


def _output_that_differs(name: str, store: Store, output: AnyHandle, again: Store, made: AnyHandle | None) -> Iterator[str]:
    if made is None:
        yield f"its output {name} was not made"
    elif isinstance(output, Dataset) and isinstance(made, Dataset) and made.fingerprint != output.fingerprint:
        yield from (f"{name}: {difference}" for difference in _differences(store, output, again, made))
    elif made.fingerprint != output.fingerprint:
        ours = {file.name: file.sha256 for file in store.manifest(output).files}
        theirs = {file.name: file.sha256 for file in again.manifest(made).files}
        files = sorted(file for file in ours.keys() | theirs.keys() if ours.get(file) != theirs.get(file))
        yield f"{name}: it is {label(made)}, was {label(output)}; {', '.join(files)} differ"


def _differences(store: Store, recorded: Dataset, again: Store, made: Dataset) -> list[str]:
    if made.fingerprint == recorded.fingerprint:
        return []
    return list(_rows_that_differ(store, recorded, again, made)) or ["equal numbers have other bits, such as the sign of a zero"]


def _rows_that_differ(store: Store, recorded: Dataset, again: Store, made: Dataset) -> Iterator[str]:
    """One line for each column that differs, with its first row; memory holds a batch of each side."""
    ours, theirs = again.open(made), store.open(recorded)
    if not ours.schema.equals(theirs.schema):
        yield f"it has the columns {', '.join(ours.schema.names)}, had {', '.join(theirs.schema.names)}, or other types"
        return
    if made.rows != recorded.rows:
        yield f"it has {made.rows} rows, had {recorded.rows}"
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    start = 0
    for left, right in _aligned(ours.to_batches(), theirs.to_batches()):
        for column in ours.schema.names:
            if left[column].equals(right[column]):
                continue
            now, then = left[column].to_pylist(), right[column].to_pylist()
            rows = [index for index, pair in enumerate(zip(now, then, strict=True)) if not _is_same(*pair)]
            if rows and column not in first:
                row = left.slice(rows[0], 1).to_pylist()[0]
                key = "/".join(str(row[name])[:12] for name in KEYS[made.name])
                first[column] = f"first in row {start + rows[0]} ({key}): {_short(now[rows[0]])}, was {_short(then[rows[0]])}"
            counts[column] = counts.get(column, 0) + len(rows)
        start += left.num_rows
    for column, where in first.items():
        yield f"{column} differs in {counts[column]} of {min(made.rows, recorded.rows)} rows, {where}"


def _aligned(one: Iterator[pa.RecordBatch], other: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """The batches of two tables, cut so that both of a pair have the same rows."""
    left, right = next(one, None), next(other, None)
    while left is not None and right is not None:
        rows = min(left.num_rows, right.num_rows)
        yield left.slice(0, rows), right.slice(0, rows)
        left = left.slice(rows) if left.num_rows > rows else next(one, None)
        right = right.slice(rows) if right.num_rows > rows else next(other, None)


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # NaN is itself here


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
