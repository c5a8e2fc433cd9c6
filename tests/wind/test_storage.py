"""The verbs of a storage: the same in a folder and on an object store."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import wind.store.object_storage
from tests.conftest import s3_request
from wind.errors import ConfigError, DatasetError, StageError
from wind.store.leases import lease
from wind.store.object_storage import ObjectStorage
from wind.store.roots import storage_for
from wind.store.storage import LocalStorage, Storage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of either kind."""
    return storage_for(
        str(tmp_path / "root") if request.param == "folder" else request.getfixturevalue("s3")
    )


@pytest.fixture
def bucket(s3: str) -> ObjectStorage:
    return ObjectStorage(s3)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tries, at once."""
    retry = {
        "max_retries": 2,
        "backoff": {
            "init_backoff": timedelta(milliseconds=1),
            "max_backoff": timedelta(milliseconds=1),
        },
    }
    monkeypatch.setattr(wind.store.object_storage, "RETRY", retry)


def at_once(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------------------------------- the verbs


def test_what_is_written_is_read(storage: Storage) -> None:
    content = os.urandom(3)
    storage.write("a/b.bin", content)
    assert storage.read("a/b.bin") == content
    assert b"".join(storage.chunks("a/b.bin")) == content
    assert storage.size("a/b.bin") == 3
    storage.write("a/b.bin", b"")
    assert storage.read("a/b.bin") == b"".join(storage.chunks("a/b.bin")) == b""
    assert storage.size("a") is storage.size("a/c") is None
    for read in (storage.read, lambda name: b"".join(storage.chunks(name))):
        with pytest.raises(FileNotFoundError):
            read("a/c")


def test_listings_are_in_order_of_name(storage: Storage) -> None:
    for name in ("x/b/c", "x/b-a", "x/a", "xy", "x/b/a/d"):
        storage.write(name, name.encode())
    before = time.time()
    assert [(entry.name, entry.bytes) for entry in storage.files("x")] == [
        (name, len(name)) for name in ("x/a", "x/b-a", "x/b/a/d", "x/b/c")
    ]
    assert all(abs(entry.modified - before) < 60 for entry in storage.files("x"))
    assert storage.names("x") == ["a", "b", "b-a"]
    assert storage.names("x/b") == ["a", "c"]
    assert storage.names("y") == []
    assert list(storage.files("y")) == []


def test_deleting_a_folder_spares_its_neighbors(storage: Storage) -> None:
    for name in ("x/a", "x/b/c", "xy"):
        storage.write(name, b"1")
    storage.delete("x")
    assert [entry.name for entry in storage.files("xy")] == []  # a file is no folder
    assert storage.names("x") == []
    assert storage.read("xy") == b"1"
    storage.delete("xy")
    storage.delete("xy")
    assert storage.size("xy") is None


def test_of_many_who_create_one_is_told_so(storage: Storage) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        if storage.create("a/b", b"%d" % number * 1000):
            won.append(number)

    at_once(create, 8)
    (winner,) = won
    assert storage.read("a/b") == b"%d" % winner * 1000
    assert storage.names("a") == ["b"]


def test_a_built_file_appears_whole_or_not_at_all(storage: Storage) -> None:
    content = os.urandom(9 * 2**20)  # two parts of an upload
    with storage.building("a/b") as path:
        path.write_bytes(content)
        assert storage.size("a/b") is None
    assert storage.size("a/b") == len(content)
    with storage.fetched("a/b") as path:
        assert path.read_bytes() == content
    with contextlib.suppress(ZeroDivisionError), storage.building("a/b") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert b"".join(storage.chunks("a/b")) == content
    assert storage.names("a") == ["b"]
    left = [
        path
        for path in storage.local.rglob("*")
        if path.is_file() and path != storage.local / "a" / "b"
    ]
    assert left == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_a_name_that_leaves_the_root_is_refused(storage: Storage, name: str) -> None:
    verbs: list[Callable[[str], object]] = [
        storage.read,
        storage.size,
        storage.delete,
        storage.names,
    ]
    verbs += [lambda name: storage.write(name, b""), lambda name: storage.create(name, b"")]
    verbs += [lambda name: list(storage.files(name)), lambda name: list(storage.chunks(name))]
    verbs += [
        lambda name: storage.building(name).__enter__(),
        lambda name: storage.lock(name).__enter__(),
    ]
    for verb in verbs:
        with pytest.raises(DatasetError, match="is not a name within"):
            verb(name)


def test_pyarrow_reads_the_same_names(storage: Storage) -> None:
    storage.write("a/b", b"0123456789")
    filesystem = storage.filesystem()
    with filesystem.open_input_file("a/b") as file:
        assert file.size() == 10
        assert file.read_at(3, 4) == b"456"
    with filesystem.open_input_stream("a/b") as stream:
        assert stream.read() == b"0123456789"
    kinds = [info.type.name for info in filesystem.get_file_info(["a/b", "a", "c"])]
    assert kinds == ["File", "Directory", "NotFound"]
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file("a/c")


# -------------------------------------------------------------------------------------------- locks


def test_a_lock_is_held_by_one(storage: Storage) -> None:
    inside, most = 0, 0

    def work(number: int) -> None:
        nonlocal inside, most
        with storage.lock("a.lock") as held:
            inside += 1
            most = max(most, inside)
            held.check()
            inside -= 1

    at_once(work, 3)
    assert (inside, most) == (0, 1)
    assert storage.names("") == []


def test_a_lock_that_is_taken_names_its_holder(storage: Storage) -> None:
    with storage.lock("run/lock", wait=False):
        with pytest.raises(BlockingIOError) as taken, storage.lock("run/lock", wait=False):
            pass
        assert str(taken.value.strerror).startswith(f"process {os.getpid()}")
    with storage.lock("run/lock", wait=False):
        pass


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.slow
def test_a_dead_holder_is_taken_over(
    bucket: ObjectStorage, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """At once where it was a process of this machine; after a lease without renewal where it was on
    another.
    """
    hold = (
        "import sys, time, wind.store.object_storage, wind.store.leases as l\nl.LEASE_SECONDS = "
        "0.9\n" + ("l.machine = lambda: 'another'\n" if elsewhere else "")
    )
    hold += f"with wind.store.object_storage.ObjectStorage({bucket.url!r}).lock('x.lock'):\n"
    hold += " print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    seconds = 0.9 if elsewhere else 30.0
    with pytest.raises(BlockingIOError), lease(bucket, "x.lock", wait=False, seconds=seconds):
        pass  # alive: refused, from another machine as soon as it renews
    time.sleep(1.0 if elsewhere else 0)  # longer than the lease, which it renewed
    assert process.poll() is None
    process.kill()
    process.communicate()
    begun = time.monotonic()
    with lease(bucket, "x.lock", wait=False, seconds=seconds) as held:
        waited = time.monotonic() - begun
        held.check()
    assert waited > 0.9 if elsewhere else waited < 5
    assert bucket.names("") == []


@pytest.mark.slow
def test_a_lost_lease_is_noticed(bucket: ObjectStorage) -> None:
    with lease(bucket, "x.lock", wait=True, seconds=0.6) as held:
        bucket.delete("x.lock")
        held.check()  # deleted, and nobody came
        bucket.write("x.lock", b'{"id": "of another"}')
        time.sleep(0.5)  # a renewal is due
        with pytest.raises(StageError, match=r"x.lock was lost to another process"):
            held.check()
        with pytest.raises(StageError, match="lost"):
            bucket.publish("a", "b", [], "manifest.json", b"{}", held)
        assert bucket.names("b") == []
    assert bucket.read("x.lock") == b'{"id": "of another"}'  # theirs, and left to them


@pytest.mark.slow
def test_an_answer_that_was_lost_does_not_lose_the_lease(bucket: ObjectStorage) -> None:
    """A conditional put that was tried again after it had worked is refused; what is stored tells
    the truth.
    """
    with lease(bucket, "x.lock", wait=True, seconds=30) as held:
        content, version = bucket.read_version("x.lock")
        again = content.replace(b'"renewals": 0', b'"renewals": 7')
        assert bucket.replace_version("x.lock", again, version) is not None
        held.check()
        held.check()


@pytest.mark.slow
def test_of_two_who_publish_one_is_refused(bucket: ObjectStorage) -> None:
    bucket.write("a/x", b"1")
    with bucket.lock("b.lock") as held:
        bucket.publish("a", "b", ["x"], "last", b"mine", held)
        assert bucket.names("a") == []
        assert (bucket.read("b/x"), bucket.read("b/last")) == (b"1", b"mine")
        # as tried again after an answer that was lost
        bucket.publish("a", "b", [], "last", b"mine", held)
        with pytest.raises(StageError, match="b was published by another process meanwhile"):
            bucket.publish("a", "b", [], "last", b"theirs", held)
    assert bucket.read("b/last") == b"mine"


# ------------------------------------------------------------------------------- roots and failures


def test_a_folder_is_a_folder_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for root in ("store", "./store", f"file://{tmp_path}/store", str(tmp_path / "store")):
        found = storage_for(root)
        assert isinstance(found, LocalStorage)
        assert found.address == str(tmp_path / "store")
    assert storage_for("store").url == "store"


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("ftp://host/x", "name a folder, or s3://BUCKET/PREFIX"),
        ("s3://", "name a folder, or s3://BUCKET/PREFIX"),
        ("s3://key:hunter2@bucket/x", "credentials belong in the environment"),
        ("s3://bucket/x?secret=hunter2", "credentials belong in the environment"),
    ],
)
def test_a_root_that_cannot_be_opened_is_one_line_without_secrets(root: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        storage_for(root)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.slow
def test_a_missing_bucket_is_one_line(s3: str) -> None:
    storage = storage_for("s3://elsewhere/x")
    for ask in (
        lambda: storage.write("a", b""),
        lambda: storage.names(""),
        lambda: storage.read("a"),
    ):
        with pytest.raises(ConfigError, match="s3://elsewhere/x has no bucket"):
            ask()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_fails_in_passing_is_asked_again(s3: str, s3_server: str) -> None:
    storage = storage_for(s3)
    assert s3_request(s3_server, "POST", "/faults?count=2&status=503", {}) == 204
    assert storage.create("a", b"1")
    assert s3_request(s3_server, "POST", "/faults?count=2&status=500", {}) == 204
    assert storage.read("a") == b"1"
    assert s3_request(s3_server, "POST", "/faults?count=3&status=503", {}) == 204
    with pytest.raises(
        StageError, match=r"s3://wind/\w+ does not answer as it should: .*503.*; rerun when it does"
    ) as error:
        storage.read("a")
    assert "\n" not in str(error.value)
    assert storage.read("a") == b"1"


@pytest.mark.usefixtures("impatient")
def test_a_refused_connection_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "WIND_CACHE": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    storage = storage_for("s3://bucket/x")
    for ask in (
        lambda: storage.read("a"),
        lambda: storage.write("a", b""),
        lambda: storage.names(""),
        lambda: storage.lock("a").__enter__(),
        lambda: storage.filesystem().open_input_file("a"),
    ):
        with pytest.raises(StageError, match="s3://bucket/x does not answer as it should") as error:
            ask()
        assert "\n" not in str(error.value)
        assert "the-secret" not in str(error.value)
