"""The store when processes race, are killed or run out of disk: what is visible is whole, and what
was finished is kept.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from wind.files import atomic_write, lock
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.shards import shard_name

ROOT = Path(__file__).resolve().parents[2]


def steps(start: int, stop: int) -> pa.Table:
    """Rows of `training`: one loss a step."""
    return pa.table(
        {
            "step": range(start, stop),
            "metric": ["loss"] * (stop - start),
            "value": [1.0] * (stop - start),
        }
    )


def publish(store: Store, *shards: pa.Table, key: str = "key") -> Dataset:
    with store.partial("training", key) as partial:
        for index, table in enumerate(shards):
            partial.write(index, table)
        return partial.publish(len(shards), parents={}, computed_by={}, numbers={}, provenance={})


def in_process(program: str, store: Store, stdin: int | None = None) -> "subprocess.Popen[str]":
    """A Python process that runs `program` with this file's helpers; `store` is the store."""
    imports = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom "
        f"{Path(__file__).stem} import *\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", f"{imports}store = Store({str(store.root)!r})\n{program}"],
        text=True,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_processes_that_publish_the_same_both_end_well(store: Store) -> None:
    program = "sys.stdin.read(); print(publish(store, steps(0, 3), key={key!r}).fingerprint)"
    processes = [
        in_process(program.format(key=str(number % 3)), store, subprocess.PIPE)
        for number in range(4)
    ]
    results = [process.communicate() for process in processes]  # closing stdin is the starting gun
    assert [process.returncode for process in processes] == [0] * 4, results
    assert len({out for out, _ in results}) == 1
    (handle,) = store.handles("training")
    assert isinstance(handle, Dataset)
    assert store.verify(handle).rows == 3


@pytest.mark.parametrize("interrupted", ["os.replace", "os.rename"])
def test_a_kill_leaves_nothing_visible_and_keeps_finished_shards(
    store: Store, interrupted: str
) -> None:
    """Killed while the second shard is written but not yet named, or after the manifest and before
    the dataset appears.
    """
    program = f"""
import time
finish = {interrupted}
def hang(source, target):
    if "part-00001" in str(target) or {interrupted!r} == "os.rename":
        print("here", flush=True)
        time.sleep(600)
    finish(source, target)
{interrupted} = hang
publish(store, steps(0, 3), steps(3, 6))
"""
    process = in_process(program, store)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n", process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(store.handles("training")) == []
    with store.partial("training", "key") as partial:  # the lock died with its holder
        missing = partial.missing(2)
        assert missing == ([0, 1] if interrupted == "os.rename" else [1])
        if 0 in missing:
            partial.write(0, steps(0, 3))
        written = shard_stamp(store.root / partial.folder / shard_name(0))
        partial.write(1, steps(3, 6))
        assert shard_stamp(store.root / partial.folder / shard_name(0)) == written
        handle = partial.publish(2, parents={}, computed_by={}, numbers={}, provenance={})
    assert store.verify(handle).rows == 6
    assert sorted(path.name for path in store.path(handle).iterdir()) == [
        "manifest.json",
        shard_name(0),
        shard_name(1),
    ]


def shard_stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_full_disk_ends_in_an_oserror_and_nothing_half_written(store: Store) -> None:
    """A limit on file sizes stands in for the disk: the first shard fits, the second does not, and
    then room is made.
    """
    program = """
import resource
with store.partial("training", "key") as partial:
    partial.write(0, steps(0, 3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
    try:
        partial.write(1, steps(3, 30_000))
    except OSError as error:
        print(error.errno, store.storage.names(partial.folder))
"""
    process = in_process(program, store)
    out, err = process.communicate()
    assert out == f"27 ['outputs-00000.json', '{shard_name(0)}']\n", err  # EFBIG
    assert publish(store, steps(0, 3), steps(3, 30_000)).rows == 30_000


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        store = Store(folder)
        small = publish(store, steps(0, 3))
        with pytest.raises(OSError, match="No space left") as error:
            publish(store, steps(0, 100_000), key="large")
        assert error.value.errno == 28  # ENOSPC
        assert list(store.handles("training")) == [small]
        assert publish(store, steps(3, 6), key="after").rows == 3
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_store_that_may_not_be_written(store: Store) -> None:
    store.root.mkdir()
    store.root.chmod(0o555)
    program = """
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    publish(store, steps(0, 3))
except PermissionError as error:
    print(error.filename)
"""
    for folder in store.root.parents:  # pytest's temporary folders are closed to others
        if folder.owner() == Path.cwd().owner() and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o711)
    out, err = in_process(program, store).communicate()
    assert out == f"{store.root / 'partial'}\n", err


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    """Each of eight threads removes the lock file when it is done, as publishing does; no two may
    ever be inside.
    """
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with lock(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                inside -= 1
                (tmp_path / "lock").unlink()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    atomic_write(path, b"old")

    def fail(source: Path, target: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
