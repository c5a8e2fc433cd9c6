"""What is ours and what somebody else says: a run goes by no record without our stamp, whatever it
says and wherever it lies.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.wind.audit_case import key, publish
from tests.wind.versions_case import three_iterations
from wind.code.digests import code_digest
from wind.errors import ConfigError, WindError
from wind.exchange.archives import export_archive, import_archive
from wind.fingerprints import digest
from wind.stages import Job, Place, published, run
from wind.store import sealed_json, stamps
from wind.store.computations import Computation, is_recorded, made_by, record, recorded
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.origins import not_computed_here
from wind.store.stamps import is_ours, lacks_key, refused, stamp_of, stamped
from wind.store.versions import Versions
from wind.training.checkpoints import latest_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """A process keeps the key that it read, and what it refused: not from test to test."""
    yield
    stamps._own.cache_clear()
    stamps._named.cache_clear()
    stamps._unkept.clear()
    stamps._refused.clear()


def as_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From now on another user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert lacks_key() is None


def job(store: Store) -> Job:
    rewards = publish(store, "rewards", {**key(digest("p")[:32], 3), "reward": [1.0, 2.0, 2.0]})[0]
    spec = {"rewards": rewards.model_dump(mode="json"), "win_rate": {}}
    return Job(
        stage="win_rates",
        spec=spec,
        place=Place(root=str(store.root)),
        code=code_digest("win_rates"),
    )


def compute(job: Job) -> Dataset:
    return run(job, lambda done, total: None)


def test_a_key_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    """Processes that start together have the same."""
    program = "from wind.store.stamps import stamp_of; print(stamp_of('check', {'a': 1}))"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in started}) == 1
    assert {process.returncode for process in started} == {0}
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path == tmp_path / ".local" / "state" / "wind" / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_stamp_is_of_every_field_and_of_the_kind_of_record() -> None:
    record = {"a": 1, "b": {"c": [1.5, None]}}
    stamp = stamp_of("check", record)
    assert is_ours("check", {**record, "stamp": stamp, "digest": "x"})
    for other in (
        {**record, "a": 2},
        {**record, "d": 1},
        {"a": 1},
        {**record, "b": {"c": [1.5, 0]}},
    ):
        assert not is_ours("check", {**other, "stamp": stamp})
    assert not is_ours("version", {**record, "stamp": stamp})
    assert not is_ours("check", record)
    assert not is_ours("check", {**record, "stamp": None})


def test_a_home_that_keeps_nothing_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert is_ours("check", json.loads(stamped("check", {"a": 1})))
    assert lacks_key() == f"{tmp_path / 'file' / 'wind' / 'key'}: Not a directory"
    store = Store(tmp_path / "store")
    wanted = job(store)
    assert published(wanted) is None
    made = compute(wanted)
    assert published(wanted) == made  # as long as the process lives


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (
            lambda path: None,
            "cannot be read (No such file or directory): name a copy of the key of your other "
            "machines",
        ),
        (
            lambda path: (path.write_text("short"), path.chmod(0o600)),
            "holds 5 bytes, a key has at least 32: `openssl rand -hex 32` makes one",
        ),
        (
            lambda path: (path.write_text("k" * 64), path.chmod(0o644)),
            "is open to everybody: run `chmod 600 ",
        ),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
    ],
)
def test_a_named_key_is_there_and_secret(
    arrange: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange(tmp_path / "team key")
    monkeypatch.setenv("WIND_KEY_FILE", str(tmp_path / "team key"))
    with pytest.raises(ConfigError) as error:
        stamp_of("check", {})
    assert str(error.value).startswith(f"WIND_KEY_FILE: {tmp_path / 'team key'} {reason}")


def test_a_shared_key_makes_what_a_colleague_computed_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team").write_text("0123456789abcdef" * 4)
    (tmp_path / "team").chmod(0o640)
    monkeypatch.setenv("WIND_KEY_FILE", str(tmp_path / "team"))
    wanted = job(Store(tmp_path / "store"))
    made = compute(wanted)
    as_somebody_else(monkeypatch, tmp_path)
    assert published(wanted) == made
    monkeypatch.delenv("WIND_KEY_FILE")
    assert published(wanted) is None


def test_no_store_and_no_archive_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = Store(tmp_path / "store")
    compute(job(store))
    export_archive(store, three_iterations(store)[-1], tmp_path / "it.wind")
    secret = (tmp_path / "state" / "wind" / "key").read_bytes().strip()
    held = [
        path
        for path in [*store.root.rglob("*"), tmp_path / "it.wind"]
        if path.is_file() and secret in path.read_bytes()
    ]
    assert held == []


def test_a_copied_store_has_no_computation_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that we compute again ends as ours, with our record of it in place of theirs."""
    store = Store(tmp_path / "store")
    wanted = job(store)
    made = compute(wanted)
    assert published(wanted) == made
    as_somebody_else(monkeypatch, tmp_path)
    assert published(wanted) is None
    assert not is_recorded(store, made, wanted.key())
    assert made_by(store, "win_rates", wanted.key()) == []
    assert [each.key() for each in recorded(store, made)] == [wanted.key()]  # as an audit shows it
    assert refused(store.address) == [
        f"computations/win_rates/{made.fingerprint}/{wanted.key()}.json"
    ]
    assert compute(wanted) == made
    assert published(wanted) == made


@pytest.mark.parametrize("is_stamped", [False, True])
def test_a_forged_record_is_none_of_ours(is_stamped: bool, tmp_path: Path) -> None:
    """Other content under the key of a job, whether the stamp is left out or is that of a record of
    ours.
    """
    store = Store(tmp_path / "store")
    wanted = job(store)
    made = compute(wanted)
    (told,) = recorded(store, made)
    forged = publish(store, "win_rates", _rows(store, made, rank=[3, 2, 1]))[0]
    fields = told.model_copy(update={"dataset": forged, **({} if is_stamped else {"stamp": ""})})
    store.storage.write(
        f"computations/win_rates/{forged.fingerprint}/{told.key()}.json", sealed_json.encode(fields)
    )
    assert made_by(store, "win_rates", told.key()) == [made]
    assert not is_recorded(store, forged, told.key())


def _rows(store: Store, made: Dataset, **changes: Any) -> dict[str, Any]:
    return store.frame(made).to_dict(as_series=False) | changes


def test_a_shard_that_somebody_left_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    table = pa.table({"step": [1], "metric": ["loss"], "value": [1.0]})
    with store.partial("training", "a") as partial:
        partial.write(0, table)
        assert partial.missing(2) == [1]
    shutil.copytree(store.root / "partial/training/a", store.root / "partial/training/b")
    with store.partial("training", "b") as partial:
        assert partial.missing(2) == [0, 1]  # ours, but of another job
    as_somebody_else(monkeypatch, tmp_path)
    with store.partial("training", "a") as partial:
        assert partial.missing(2) == [0, 1]
        partial.write(0, table)
        assert partial.missing(2) == [1]


def test_a_checkpoint_that_somebody_left_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pickled: to load it is to run it."""
    step = tmp_path / "work" / "step-00000003"

    def leave(folder: str) -> None:
        step.mkdir(parents=True)
        (step / "complete.json").write_bytes(
            stamped("checkpoint", {"steps": 3, "rows": [], "files": {}, "folder": folder})
        )

    leave("work")
    assert latest_checkpoint(step.parent) is not None
    as_somebody_else(monkeypatch, tmp_path)
    assert latest_checkpoint(step.parent) is None
    assert not step.exists()
    leave("another")
    assert latest_checkpoint(step.parent) is None
    step.mkdir()
    (step / "complete.json").write_text(json.dumps({"steps": 3, "rows": [], "files": {}}))
    assert latest_checkpoint(step.parent) is None


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of somebody else's: a version with records of its computations."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "sender"))
        store = Store(tmp_path / "theirs")
        last = three_iterations(store)[-1]
        for dataset in last.content.datasets.values():
            record(store, Computation(dataset=dataset, stage="training", spec={}, code="code"))
        export_archive(store, last, tmp_path / "sent.wind")
    return tmp_path / "sent.wind"


def test_what_is_imported_is_theirs_and_says_so(sent: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "ours")
    version = import_archive(store, sent).version
    made = version.content.datasets["training"]
    assert made_by(store, "training", recorded(store, made)[0].key()) == []
    for each in Versions(store, "demo"):
        assert not_computed_here(store, each) == "imported from sent.wind, not computed here"
    with pytest.raises(
        ConfigError,
        match="demo@1 was imported without --trust, as its record says: `wind forget demo@1` first",
    ):
        import_archive(store, sent, trust="ann")
    export_archive(store, list(Versions(store, "demo"))[-1], tmp_path / "on.wind")
    third = Store(tmp_path / "third")
    import_archive(third, tmp_path / "on.wind", "mine")
    assert "imported from sent.wind, then on.wind, not" in str(
        not_computed_here(third, next(iter(Versions(third, "mine"))))
    )


def test_a_trusted_sender_is_named_for_ever(
    sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "ours")
    version = import_archive(store, sent, trust="ann").version
    made = version.content.datasets["training"]
    assert made_by(store, "training", recorded(store, made)[0].key()) == [made]
    assert (
        not_computed_here(store, version)
        == "imported from ann, whom you trusted, not computed here"
    )
    assert [each.sender for stored in Versions(store, "demo") for each in stored.origins] == [
        "ann"
    ] * 3
    import_archive(store, sent, trust="ann")  # again
    as_somebody_else(monkeypatch, tmp_path)
    third = Store(tmp_path / "third")
    export_archive(store, version, tmp_path / "on.wind")
    import_archive(third, tmp_path / "on.wind")
    told = not_computed_here(third, list(Versions(third, "demo"))[-1])
    # whom somebody else trusted is not whom we trust
    assert told == "imported from ann, then on.wind, not computed here"
    with pytest.raises(WindError, match="'a b' cannot be a sender"):
        import_archive(store, sent, trust="a b")


def test_our_own_archive_comes_back_as_ours(tmp_path: Path) -> None:
    store = Store(tmp_path / "ours")
    last = three_iterations(store)[-1]
    export_archive(store, last, tmp_path / "own.wind")
    again = Store(tmp_path / "again")
    for run_name in (None, "mine"):
        version = import_archive(again, tmp_path / "own.wind", run_name).version
        stored = list(Versions(again, version.run))[-1]
        assert not_computed_here(again, stored) is None
        assert stored.origins == ()


def test_versions_of_a_copied_store_are_not_known_to_be_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    three_iterations(store)
    assert {not_computed_here(store, version) for version in Versions(store, "demo")} == {None}
    as_somebody_else(monkeypatch, tmp_path)
    told = {str(not_computed_here(store, version)) for version in Versions(store, "demo")}
    assert told == {
        "without a stamp of ours: copied, of another machine or of an older release, and not "
        "known to be computed here"
    }
