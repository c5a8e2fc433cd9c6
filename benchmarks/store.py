"""Benchmark the store at scale.

Usage: python benchmarks/store.py [--rows N] [--repeats N] [--versions N] [--folder PATH]

Win rates of random rewards are written, verified, checked and joined by the store, each compared
with what plain libraries take for the same bytes in the same run; then `wind versions` over many
versions. Every part runs in its own process, so that its peak memory is its own. Repetitions of the
two sides take turns, and the best of each counts. A ratio is the speed of the store as a share of
that of the plain side.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_checks.validation import validate
from wind import stages
from wind.config.checks import ChecksConfig
from wind.config.loading import load_config
from wind.config.rewards import WinRateConfig
from wind.exchange import reading
from wind.fingerprints import digest, file_digest
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model, label
from wind.store.versions import Content, Versions
from wind.win_rates import WinRatesSpec

# responses per prompt
N = 8
SHARD_ROWS = 62_500 * N
VERSIONS_PER_RUN = 50
TOUCHED_MB = 2048
FACTS: dict[str, Any] = {"parents": {}, "computed_by": {}, "numbers": {}, "provenance": {}}


@dataclass(frozen=True)
class Part:
    """Measurements of one part of the benchmark."""

    # by side
    seconds: dict[str, float]
    bytes: int
    # of its process, in bytes
    peak_memory: int
    # of the same process before its work, with everything imported
    began_memory: int


def main() -> None:
    """Measure part after part, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument(
        "--folder",
        help="The folder to work in, whose disk is measured (default: the temporary folder).",
    )
    arguments = parser.parse_args()
    rows = -(-arguments.rows // SHARD_ROWS) * SHARD_ROWS
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(
            f"{rows} rows of win rates in {rows // SHARD_ROWS} shards, "
            f"{os.cpu_count()} processors, {folder}"
        )
        print(
            f"{'':<9}{'side':<42}{'seconds':>9}{'rows/s':>13}{'MB/s':>8}{'ratio':>7}"
            f"{'peak MB':>9}{'began':>7}",
            flush=True,
        )
        rewards = in_its_own_process(make_rewards, folder, rows)
        win_rates, part = in_its_own_process(compute, folder, rewards)
        print_part("compute", part, rows)
        for name, measure in (
            ("write", write),
            ("verify", verify),
            ("check", check),
            ("join", join),
        ):
            print_part(
                name,
                in_its_own_process(measure, folder, win_rates, rewards, arguments.repeats),
                rows,
            )
        in_its_own_process(make_versions, folder, arguments.versions)
        print_versions(folder, arguments.versions, arguments.repeats)


def make_rewards(folder: str, rows: int) -> Dataset:
    """Store random rewards, some of them tied, as a dataset."""
    with Store(folder).partial("rewards", "0") as partial:
        for index in range(rows // SHARD_ROWS):
            partial.write(index, rewards_of(index))
        return partial.publish(rows // SHARD_ROWS, **FACTS)


def rewards_of(shard: int) -> pa.Table:
    """Return the rewards of one shard, prompts in order."""
    prompts = SHARD_ROWS // N
    rewards = np.random.default_rng(shard).normal(size=SHARD_ROWS).round(1)
    prompt_ids = [f"{shard * prompts + prompt:032x}" for prompt in range(prompts)]
    return pa.table(
        {
            "prompt_id": pa.array(prompt_ids).take(np.repeat(np.arange(prompts), N)),
            "sample_index": np.tile(np.arange(N, dtype=np.int32), prompts),
            "reward": rewards,
        }
    )


def compute(folder: str, rewards: Dataset) -> tuple[Dataset, Part]:
    """Compute the stage win_rates as a run does."""
    spec = WinRatesSpec(rewards=rewards, win_rate=WinRateConfig())
    job = stages.Job(
        stage="win_rates", spec=spec.model_dump(mode="json"), place=stages.Place(root=folder)
    )
    began, memory = time.perf_counter(), peak_memory()
    handle = stages.run(job, lambda done, total: None)
    seconds = {"stage: read, rank, write, publish": time.perf_counter() - began}
    return handle, Part(seconds, Store(folder).manifest(handle).bytes(), peak_memory(), memory)


def write(folder: str, win_rates: Dataset, rewards: Dataset, repeats: int) -> Part:
    """Measure writing and publishing against plain writing and hashing.

    The store writes shards, fingerprint and checksums, and syncs everything.
    """
    store, memory = Store(folder), peak_memory()

    def plain(is_synced: bool) -> float:
        total = 0.0
        with tempfile.TemporaryDirectory(dir=folder) as target:
            for index, table in enumerate(tables(store, win_rates)):
                began = time.perf_counter()
                path = Path(target, f"{index}.arrow")
                with (
                    pa.OSFile(str(path), "wb") as sink,
                    pa.ipc.new_file(sink, table.schema) as writer,
                ):
                    writer.write_table(table)
                    if is_synced:
                        writer.close()
                        os.fsync(sink.fileno())
                file_digest(path)
                total += time.perf_counter() - began
        return total

    def stored() -> float:
        total = 0.0
        with (
            tempfile.TemporaryDirectory(dir=folder) as target,
            Store(target).partial("win_rates", "0") as partial,
        ):
            for index, table in enumerate(tables(store, win_rates)):
                began = time.perf_counter()
                partial.write(index, table)
                total += time.perf_counter() - began
            began = time.perf_counter()
            partial.publish(len(store.manifest(win_rates).files), **FACTS)
            return total + time.perf_counter() - began

    sides = {
        "plain pyarrow write, sha256": lambda: plain(False),
        "plain pyarrow write, sync, sha256": lambda: plain(True),
        "store: write, sync, both digests, publish": stored,
    }
    return Part(
        best(folder, sides, repeats), store.manifest(win_rates).bytes(), peak_memory(), memory
    )


def tables(store: Store, handle: Dataset) -> Iterator[pa.Table]:
    """Yield the shards one by one, in memory."""
    for index in range(len(store.manifest(handle).files)):
        yield store.read(handle, shard=index)


def verify(folder: str, win_rates: Dataset, rewards: Dataset, repeats: int) -> Part:
    """Measure verifying against reading and hashing the same files.

    The store checks every checksum and the fingerprint.
    """
    store, memory = Store(folder), peak_memory()
    paths = [store.path(win_rates) / file.name for file in store.manifest(win_rates).files]

    def plain() -> None:
        for path in paths:
            file_digest(path)
            with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
                reader.read_all()

    sides = {"plain sha256, pyarrow read": plain, "store: verify": lambda: store.verify(win_rates)}
    return Part(
        best(folder, sides, repeats), store.manifest(win_rates).bytes(), peak_memory(), memory
    )


def check(folder: str, win_rates: Dataset, rewards: Dataset, repeats: int) -> Part:
    """Measure the suite of win rates, with rewards joined to them."""
    store, memory = Store(folder), peak_memory()
    seconds = best(
        folder, {"suite, Great Expectations": lambda: validate(win_rates, store, ChecksConfig())}, 1
    )
    return Part(seconds, store.manifest(win_rates).bytes(), peak_memory(), memory)


def join(folder: str, win_rates: Dataset, rewards: Dataset, repeats: int) -> Part:
    """Measure joining win rates and rewards, and aggregating the result.

    The join is by key; the reader is compared with plain polars on the same files.
    """
    store, reader, memory = Store(folder), reading.open(folder), peak_memory()

    def joined(left: pl.LazyFrame, right: pl.LazyFrame) -> pl.DataFrame:
        rows = left.join(right, on=["prompt_id", "sample_index"], how="inner")
        return rows.select(pl.len(), pl.corr("win_rate", "reward")).collect(engine="streaming")

    def scanned(handle: Dataset) -> pl.LazyFrame:
        return pl.scan_ipc(store.path(handle) / "*.arrow")

    sides = {
        "plain polars, lazy": lambda: joined(scanned(win_rates), scanned(rewards)),
        "reader: wind.open, lazy": lambda: joined(
            reader.dataset(label(win_rates)), reader.dataset(label(rewards))
        ),
    }
    size = store.manifest(win_rates).bytes() + store.manifest(rewards).bytes()
    sides["reader: wind.open, lazy"]()
    # that of the reader alone: polars by itself takes several times as much
    peak = peak_memory()
    return Part(best(folder, sides, repeats), size, peak, memory)


def make_versions(folder: str, count: int) -> None:
    """Publish versions that name nothing stored, in runs of fifty."""
    recipe = load_config(Path(__file__).parents[1] / "configs" / "demo.yaml").model_dump(
        mode="json"
    )
    model = Model(fingerprint=digest("model"), parameters=1)
    for index in range(count):
        run = f"run-{index // VERSIONS_PER_RUN:03d}"
        content = Content(
            iteration=index % VERSIONS_PER_RUN + 1,
            recipe=recipe,
            datasets={
                name: Dataset(name=name, fingerprint=digest([index, name]), rows=index)
                for name in stages.STAGES
            },
            model_in=model,
            model_out=model,
            reference=model,
            previous=None,
        )
        metrics = {
            name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": index}
            for name in ("win_rate", "mean_reward", "kl_k1")
        }
        seconds = dict.fromkeys(stages.STAGES, 1.0)
        Versions(Store(folder), run).publish(
            content, checks=dict.fromkeys(stages.STAGES, 5), metrics=metrics, seconds=seconds
        )


def print_versions(folder: str, count: int, repeats: int) -> None:
    """Measure the command as a process.

    Prints wall time, and the processor time, which does not depend on the machine's load.
    """
    print(f"\n{'':<9}{'process':<42}{'seconds':>9}{'of CPU':>9}")
    for name, command in (
        (
            "python starts, imports pyarrow, pydantic",
            ["-c", "import pyarrow, pydantic, rich, typer"],
        ),
        (f"wind versions, of {count}", ["-m", "flows.cli", "versions", "--root", folder]),
    ):
        runs = [process_seconds([sys.executable, *command]) for _ in range(repeats)]
        wall, cpu = (min(times) for times in zip(*runs, strict=True))
        print(f"{'versions':<9}{name:<42}{wall:>9.2f}{cpu:>9.2f}")


def process_seconds(command: list[str]) -> tuple[float, float]:
    """Return the wall and processor seconds of a command."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return time.perf_counter() - began, spent


def best(folder: str, sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the best time of each side, in seconds; sides take turns.

    A side that times itself returns its seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            touch_memory(folder)
            began = time.perf_counter()
            own = run()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - began)
    return {name: min(values) for name, values in seconds.items()}


def touch_memory(folder: str) -> None:
    """Touch memory for the files that a side writes.

    A virtual machine pays for the first touch of memory, whoever makes it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(TOUCHED_MB):
            file.write(bytes(2**20))


def print_part(name: str, part: Part, rows: int) -> None:
    """Print one line per side; the last is the store's."""
    *_, store = part.seconds
    for side, seconds in part.seconds.items():
        rates = f"{seconds:>9.2f}{rows / seconds:>13,.0f}{part.bytes / seconds / 1e6:>8.0f}"
        is_plain = side != store
        ratio = f"{seconds / part.seconds[store]:>7.2f}" if is_plain else f"{'':>7}"
        memory = (
            "" if is_plain else f"{part.peak_memory / 1e6:>9.0f}{part.began_memory / 1e6:>7.0f}"
        )
        print(f"{name:<9}{side:<42}{rates}{ratio}{memory}", flush=True)


def peak_memory() -> int:
    """Return this process's peak resident memory in bytes.

    Includes pages of mapped files.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def in_its_own_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of `measure` from a new process, which then ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


if __name__ == "__main__":
    main()
