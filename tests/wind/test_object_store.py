"""The store in a bucket: published by conditional put, read in place, models copied once, two
writers that both end well.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.chaos.proxy import Proxy, When
from tests.conftest import s3_request
from tests.wind.test_dataset_crashes import publish, steps
from wind.errors import DatasetError, StageError
from wind.files import lock
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.garbage.survey import IN_CACHE
from wind.store.handles import folder_of
from wind.store.imports import import_model
from wind.store.object_storage import ObjectStorage, cache_folder
from wind.store.shards import shard_name
from wind.store.studies import studies
from wind.store.versions import Versions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import sys; sys.path.insert(0, {folder!r})\nfrom test_dataset_crashes import *\nstore "
    "= Store({root!r})\n"
)


@pytest.fixture
def bucket(s3: str) -> Store:
    """An empty store in a bucket."""
    return Store(s3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a model; nothing here loads them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"weight": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def in_process(program: str, root: str) -> "subprocess.Popen[str]":
    start = PROGRAM.format(folder=str(Path(__file__).parent), root=root)
    return subprocess.Popen(
        [sys.executable, "-c", start + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_server_that_is_killed_and_restarted_is_waited_for(
    bucket: Store, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.storage.write("a", b"content")
    proxy = Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
    storage = Store(bucket.url).storage
    cuts: tuple[When, ...] = ("before", "half", "after")
    asks: list[Callable[[], bool]] = [
        lambda: storage.read("a") == b"content",
        lambda: storage.names("") == ["a"],
        lambda: storage.size("a") == 7,
    ]
    for when in cuts:
        for ask in asks:
            proxy.arm(1, lambda: proxy.kill_for(0.1), when)
            assert ask()
    proxy.kill()


def test_a_collection_removes_what_the_dead_left_in_the_cache_of_this_machine(
    bucket: Store,
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = (
        "scratch/scratch-{}-a",
        "models/0/.weights.{}-7.partial",
        "partial/models/scratch-{}-b/config.json",
    )
    for pid in (dead.pid, os.getpid()):
        for name in left:
            path = bucket.local / name.format(pid)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
    (bucket.local / "models" / "0.lock").touch()
    with lock(bucket.local / "models" / "1.lock"):
        assert {item.kind for item in collect(bucket, dry_run=True).items} == {IN_CACHE}
        collect(bucket)
        files = {
            path.relative_to(bucket.local).as_posix()
            for path in bucket.local.rglob("*")
            if path.is_file()
        }
    assert files == {*(name.format(os.getpid()) for name in left), "models/1.lock"}


def test_a_damaged_study_is_named_by_its_address(bucket: Store) -> None:
    bucket.storage.write("runs/compare/study.json", b"{")
    with pytest.raises(DatasetError, match=f"^{bucket.url}/runs/compare/study.json is not a study"):
        list(studies(bucket))


def test_a_dataset_is_the_same_in_a_bucket(bucket: Store, store: Store) -> None:
    handle = publish(bucket, steps(0, 3), steps(3, 6))
    assert handle == publish(store, steps(0, 3), steps(3, 6))
    assert bucket.is_whole(handle)
    assert bucket.verify(handle).files == store.verify(handle).files
    assert bucket.read(handle).equals(store.read(handle))
    assert bucket.read(handle, ["step"], shard=1).to_pydict() == {"step": [3, 4, 5]}
    assert bucket.open(handle).count_rows() == 6
    assert list(bucket.handles("training")) == [handle]
    assert [entry.name for entry in bucket.storage.files("")] == [
        f"{folder_of(handle)}/{name}" for name in ("manifest.json", shard_name(0), shard_name(1))
    ]
    # nothing is kept on this machine
    assert [path for path in bucket.local.rglob("*") if path.is_file()] == []
    with pytest.raises(StageError, match=r"s3://.* is no folder of this machine"):
        _ = bucket.root


def test_finished_shards_wait_for_the_rest(bucket: Store) -> None:
    with bucket.partial("training", "key") as partial:
        partial.write(1, steps(3, 5))
        partial.write(0, steps(0, 3))
    assert list(bucket.handles("training")) == []
    again = Store(bucket.url)
    with again.partial("training", "key") as partial:
        assert partial.missing(3) == [2]
        assert partial.table(2)["step"].to_pylist() == [0, 1, 2, 3, 4]
        handle = partial.publish(2, parents={}, computed_by={}, numbers={}, provenance={})
    assert bucket.verify(handle).rows == 5
    assert bucket.storage.names("partial") == []


@pytest.mark.parametrize("kind", ["flipped", "shortened", "missing", "no manifest"])
def test_damage_is_found_named_and_repaired(bucket: Store, kind: str) -> None:
    handle = publish(bucket, steps(0, 3))
    name = f"{folder_of(handle)}/{shard_name(0)}"
    content = bucket.storage.read(name)
    if kind == "flipped":
        time.sleep(1.1)  # the server tells times in whole seconds
        bucket.storage.write(name, content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    elif kind == "shortened":
        bucket.storage.write(name, content[:-1])
    else:
        bucket.storage.delete(name if kind == "missing" else f"{folder_of(handle)}/manifest.json")
    assert not bucket.is_whole(handle)
    with pytest.raises(DatasetError, match=f"{handle.fingerprint[:12]}.*"):
        bucket.verify(handle)
    assert publish(bucket, steps(0, 3), key="again") == handle
    assert bucket.verify(handle).rows == 3


def test_a_model_is_copied_to_this_machine_once(bucket: Store, folder: Path) -> None:
    model = import_model(bucket, folder)
    assert import_model(bucket, folder) == model
    assert bucket.verify(model).kind == "models"
    copy = bucket.path(model)
    assert copy == cache_folder(bucket.url) / "models" / model.fingerprint
    weights = copy / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()
    before = weights.stat().st_mtime_ns
    assert bucket.path(model) == copy
    assert weights.stat().st_mtime_ns == before
    (copy / "config.json").unlink()
    assert bucket.path(model) == copy
    assert (copy / "config.json").is_file()
    assert weights.stat().st_mtime_ns == before  # only what was missing
    name = f"models/{model.fingerprint}/model.safetensors"
    bucket.storage.write(name, bucket.storage.read(name)[:-1] + b"\xff")
    shutil.rmtree(copy)
    with pytest.raises(DatasetError, match=r"model.safetensors does not have the sha256"):
        bucket.path(model)
    assert not (copy / "manifest.json").exists()


def test_a_published_model_leaves_nothing_behind(bucket: Store, folder: Path) -> None:
    scratch = bucket.scratch("training") / "export"
    shutil.copytree(folder, scratch)
    model = bucket.publish_model(scratch, numbers={"loss": 0.5})
    assert not scratch.exists()
    assert model == import_model(bucket, folder)
    assert bucket.verify(model).numbers == {"loss": 0.5}


def test_writers_that_race_end_with_one_whole_dataset(bucket: Store) -> None:
    """The same rows under the same key and under another, and in another cut into shards, whose
    files have the same names.
    """
    cuts = (
        ("a", [steps(0, 4)]),
        ("a", [steps(0, 4)]),
        ("b", [steps(0, 2), steps(2, 4)]),
        ("c", [steps(0, 4)]),
    )
    with ThreadPoolExecutor(len(cuts)) as threads:
        published = set(
            threads.map(lambda cut: publish(Store(bucket.url), *cut[1], key=cut[0]), cuts)
        )
    (handle,) = published
    assert list(bucket.handles("training")) == [handle]
    assert bucket.verify(handle).rows == 4
    # no lock, no loser's shards
    assert {entry.name.split("/")[0] for entry in bucket.storage.files("")} == {"datasets"}


def test_a_killed_writer_blocks_nobody(bucket: Store) -> None:
    """Killed with the shards in place and before the manifest: nothing is visible, and the next
    takes both locks over.
    """
    program = """
import time, wind.store.object_storage
def hang(*arguments):
    print("here", flush=True)
    time.sleep(600)
wind.store.object_storage.ObjectStorage.create = hang
publish(store, steps(0, 3))
"""
    process = in_process(program, bucket.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n", process.communicate()
    process.kill()
    process.communicate()
    assert list(bucket.handles("training")) == []
    with bucket.partial("training", "key") as partial:
        assert partial.missing(1) == []
        handle = partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    assert bucket.verify(handle).rows == 3


def test_a_writer_that_lost_its_lock_does_not_publish(bucket: Store) -> None:
    with bucket.partial("training", "key") as partial:
        partial.write(0, steps(0, 3))
        bucket.storage.write("partial/training/key.lock", b'{"id": "of another"}')
        with pytest.raises(StageError, match=r"key\.lock was lost to another process"):
            partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})
    assert list(bucket.handles("training")) == []


def test_a_server_that_fails_for_a_moment_is_not_seen(bucket: Store, s3_server: str) -> None:
    assert s3_request(s3_server, "POST", "/faults?count=3&status=503", {}) == 204
    handle = publish(bucket, steps(0, 3))
    assert s3_request(s3_server, "POST", "/faults?count=3&status=500", {}) == 204
    assert bucket.verify(handle).rows == 3


def test_no_secret_is_stored(bucket: Store) -> None:
    handle = publish(bucket, steps(0, 3))
    content: dict[str, Any] = json.loads(bucket.storage.read(f"{folder_of(handle)}/manifest.json"))
    assert "the-secret" not in json.dumps(content) + repr(bucket) + repr(bucket.storage)
    assert isinstance(bucket.storage, ObjectStorage)
    assert list(Versions(bucket, "none")) == []
