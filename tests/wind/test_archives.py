"""Archives: another machine gets the same version, or nothing and one line that says why."""

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.wind.versions_case import verify
from wind.audit.verification import Verification
from wind.errors import ConfigError, DatasetError, InputError, WindError
from wind.exchange.archives import export_archive, import_archive, reachable
from wind.exchange.archives.layout import Index, Member, header, padding
from wind.exchange.archives.reader import ArchiveReader
from wind.fingerprints import digest
from wind.store.computations import Computation, record
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.garbage.survey import Item
from wind.store.handles import Model, Source, folder_of
from wind.store.references import find_version
from wind.store.versions import Version, Versions, runs

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def made(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and the archive of its last version; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(demo_store, folder / "store")
    store = Store(folder / "store")
    # of a dataset that no version has
    store.storage.write(f"checks/rewards/{'0' * 64}.json", b'{"success": false}')
    export_archive(store, find_version(store, "demo"), folder / "demo.wind")
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made / "store", tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def versions(store: Store) -> list[Version]:
    return list(Versions(store, "demo"))


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Path:
    shutil.copyfile(made / "demo.wind", tmp_path / "demo.wind")
    return tmp_path / "demo.wind"


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """The store of another machine."""
    return Store(tmp_path / "elsewhere")


def content(store: Store) -> dict[str, bytes]:
    """Every file of a store but locks, and what is unfinished."""
    names = [entry.name for entry in store.storage.files("") if not entry.name.endswith(".lock")]
    return {name: store.storage.read(name) for name in names if not name.startswith("partial/")}


def test_another_machine_gets_the_same(
    store: Store, versions: list[Version], archive: Path, other: Store, tmp_path: Path
) -> None:
    found = import_archive(other, archive)
    assert (found.version.id, found.versions) == (versions[1].id, 2)
    # seven datasets and then six more, prompts being the same; the dropped prompts; base and two
    # trained models; a source
    assert found.stored == 7 + 6 + 1 + 3 + 1 == len(reachable(store, versions))
    ours, theirs = content(store), content(other)
    assert {name for name in ours if name not in theirs} == {f"checks/rewards/{'0' * 64}.json"}
    assert {name: ours[name] for name in theirs} == theirs
    assert find_version(other, "demo") == versions[1]
    assert find_version(other, "demo@1") == versions[0]
    assert verify(other, versions[1]) == verify(store, versions[1])
    export_archive(other, find_version(other, "demo"), tmp_path / "back.wind")
    assert (tmp_path / "back.wind").read_bytes() == archive.read_bytes()
    with tarfile.open(archive) as unpacked:
        unpacked.extractall(tmp_path / "unpacked", filter="data")
    opened = Store(tmp_path / "unpacked")
    Versions(opened, "demo").set_latest(versions[1])
    assert verify(opened, versions[1]) == verify(store, versions[1])


def test_environments_and_patches_go_along(
    store: Store, versions: list[Version], other: Store, tmp_path: Path
) -> None:
    environment, patch = {"packages": ["numpy==2"]}, b"--- a\n+++ b\n"
    names = [
        f"environments/{digest(environment)}.json",
        f"patches/{hashlib.sha256(patch).hexdigest()}.patch",
    ]
    store.storage.write(names[0], json.dumps(environment, indent=1).encode())
    store.storage.write(names[1], patch)
    store.storage.write(f"environments/{'0' * 64}.json", b"{}")  # that nothing names
    rewards = versions[1].content.datasets["rewards"]
    provenance = {
        "environments": [digest(environment), "1" * 64],
        "git_patch": hashlib.sha256(patch).hexdigest(),
    }
    record(store, Computation(dataset=rewards, stage="rewards", spec={}, provenance=provenance))
    export_archive(store, versions[1], tmp_path / "described.wind")
    import_archive(other, tmp_path / "described.wind")
    assert [other.storage.read(name) for name in names] == [
        store.storage.read(name) for name in names
    ]
    assert other.storage.names("environments") == [names[0].partition("/")[2]]

    missing = (
        f"{store.url}/environments/{'1' * 64}.json is not here: what it describes cannot be told"
    )
    assert missing in map(str, verified(store, versions[1]).notes)
    store.storage.write(names[0], json.dumps({"packages": ["numpy==3"]}).encode())
    store.storage.write(names[1], b"")
    assert {
        finding.file.removeprefix(f"{store.url}/")
        for finding in verified(store, versions[1]).findings
    } == set(names)
    export_archive(store, versions[1], tmp_path / "forged.wind")
    with pytest.raises(DatasetError, match=r"environments/\w+.json is not what its name says"):
        import_archive(Store(tmp_path / "third"), tmp_path / "forged.wind")
    assert not list(Store(tmp_path / "third").storage.files("environments"))


def verified(store: Store, version: Version) -> Verification:
    verification = Verification(store)
    verification.version(version.run, version.number)
    return verification


def test_a_collection_beside_an_import_leaves_what_it_takes_in(
    versions: list[Version], archive: Path, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = Versions.adopt
    freed: list[Item] = []

    def collecting_first(self: Versions, version: Version) -> bool:
        freed.extend(collect(other).items)
        return adopt(self, version)

    monkeypatch.setattr(Versions, "adopt", collecting_first)
    import_archive(other, archive)
    assert freed == []
    assert [verify(other, version) > 0 for version in versions] == [True, True]
    assert collect(other).items == ()


def test_a_second_import_changes_nothing(
    versions: list[Version], archive: Path, other: Store
) -> None:
    import_archive(other, archive)
    before = content(other)
    again = import_archive(other, archive)
    assert (again.versions, again.stored) == (0, 0)
    assert content(other) == before


def test_an_import_goes_on_where_a_run_is(
    store: Store, versions: list[Version], other: Store, tmp_path: Path
) -> None:
    export_archive(store, versions[0], tmp_path / "first.wind")
    export_archive(store, versions[1], tmp_path / "second.wind")
    import_archive(other, tmp_path / "first.wind")
    assert find_version(other, "demo").id == versions[0].id
    assert import_archive(other, tmp_path / "second.wind").versions == 1
    assert find_version(other, "demo").id == versions[1].id
    import_archive(other, tmp_path / "first.wind")
    assert find_version(other, "demo").id == versions[1].id


def test_a_name_that_is_taken_needs_another(
    versions: list[Version], archive: Path, other: Store, tmp_path: Path
) -> None:
    taken = versions[1].content.model_copy(update={"recipe": {"seed": 1}, "previous": None})
    Versions(other, "demo").publish(taken, checks={}, metrics={}, seconds={})
    before = content(other)
    with pytest.raises(ConfigError, match=r"demo@1 is another version.*--as"):
        import_archive(other, archive)
    assert content(other) == before
    found = import_archive(other, archive, "theirs")
    assert found.version.run == "theirs"
    renamed = list(Versions(other, "theirs"))
    assert [version.id for version in renamed] == [version.id for version in versions]
    assert all(verify(other, version) for version in renamed)
    assert find_version(other, "demo").id == taken.id()
    with pytest.raises(ConfigError, match="cannot be a run"):
        import_archive(other, archive, "../theirs")


def test_a_broken_import_is_finished_by_the_next(
    versions: list[Version], archive: Path, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt, left = Store.adopt, iter(range(5))

    def dies(self: Store, *arguments: Any) -> None:
        next(left)
        adopt(self, *arguments)

    monkeypatch.setattr(Store, "adopt", dies)
    with pytest.raises(StopIteration):
        import_archive(other, archive)
    monkeypatch.undo()
    assert runs(other) == []
    assert list((other.root / "partial" / "imports").iterdir()) == []
    for name in ("rewards", "models", "sources"):
        assert all(other.verify(handle) for handle in other.handles(name))
    assert import_archive(other, archive).stored == 18 - 5
    assert verify(other, versions[1]) > 0


def test_parents_come_before_what_was_made_of_them(store: Store, versions: list[Version]) -> None:
    order = reachable(store, versions)
    assert len(order) == len(set(order)) == 18
    for position, handle in enumerate(order):
        manifest = store.manifest(handle)
        assert set(order[:position]) >= {*manifest.parents.values(), *manifest.outputs.values()}
    assert sum(isinstance(handle, Model) for handle in order) == 3
    assert sum(isinstance(handle, Source) for handle in order) == 1


def test_what_is_missing_or_damaged_is_not_exported(
    store: Store, versions: list[Version], tmp_path: Path
) -> None:
    training = versions[0].content.datasets["training"]
    name = f"{folder_of(training)}/part-00000.arrow"
    whole = store.storage.read(name)
    for damaged in (whole[:-1], whole[:-9] + bytes(9), None):
        store.storage.delete(name) if damaged is None else store.storage.write(name, damaged)
        with pytest.raises(DatasetError, match=r"part-00000\.arrow"):
            export_archive(store, versions[1], tmp_path / "demo.wind")
        assert not list(tmp_path.glob("*demo.wind*"))
    store.storage.write(name, whole)
    store.storage.delete("runs/demo/versions/0001.json")
    with pytest.raises(DatasetError, match="continues version"):
        export_archive(store, versions[1], tmp_path / "demo.wind")


# --------------------------------------------------------------------------------- hostile archives


def members_of(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def forge(archive: Path, members: Members, *, listed: bool = True) -> None:
    """Write `members` as a tar at `archive`, with an index that lists them as they are."""
    index = json.loads(members[0][1])
    if listed:
        index["files"] = [
            {"name": info.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for info, data in members[1:]
        ]
    head = (members[0][0], json.dumps(index, indent=1, ensure_ascii=False).encode())
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in [head, *members[1:]]:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    trimmed = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(trimmed + bytes(-len(trimmed) % 512) + bytes(1024))


def plain(name: str, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = mode
    return info


def position(members: Members, part: str) -> int:
    return next(index for index, (info, _) in enumerate(members) if part in info.name)


def test_a_forged_copy_of_what_is_there_is_an_archive(archive: Path, other: Store) -> None:
    before = archive.read_bytes()
    forge(archive, members_of(archive))
    assert archive.read_bytes() == before  # so that the tests below fail for their own reason


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "/etc/cron.d/x",
        "runs/../../x/versions/0001.json",
        "datasets/rewards/" + "0" * 64 + "/../../x.arrow",
        "sources/" + "0" * 64 + "/..",
        "sources/" + "0" * 64 + "/a\\b",
        "models/" + "0" * 64 + "/pytorch_model.bin",
        "models/" + "0" * 64 + "/modeling.py",
        "runs/demo/tags/latest",
        "results/" + "0" * 64,
        "zzz",
    ],
)
def test_a_name_that_no_version_needs_is_refused(archive: Path, other: Store, name: str) -> None:
    members = members_of(archive)
    forge(
        archive,
        [members[0], *sorted([*members[1:], (plain(name), b"{}")], key=lambda each: each[0].name)],
    )
    with pytest.raises(InputError, match="which is not a file of a version"):
        import_archive(other, archive)
    assert content(other) == {}


def test_a_member_that_is_no_plain_file_is_refused(archive: Path, other: Store) -> None:
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_SPARSE,
    ):
        members = members_of(archive)
        at = position(members, "part-00000.arrow")
        link = plain(members[at][0].name)
        link.type, link.linkname = kind, "/etc/passwd"
        forged = archive.with_name("forged.wind")
        members[at] = (link, members[at][1])
        forge(forged, members)
        with pytest.raises(InputError, match="does not have the plain file"):
            import_archive(other, forged)
    assert content(other) == {}


def test_what_is_not_exactly_the_listed_bytes_is_refused(archive: Path, other: Store) -> None:
    whole = archive.read_bytes()
    members = members_of(archive)
    forged = archive.with_name("forged.wind")
    swapped = [members[0], *members[2:], members[1]]
    twice = [members[0], members[1], *members[1:]]
    longer = [members[0], (members[1][0], members[1][1] + b" "), *members[2:]]
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: forged.write_bytes(whole + b"x"), "goes on after its end"),
        (lambda: forged.write_bytes(whole + bytes(512)), "goes on after its end"),
        (lambda: forged.write_bytes(whole[:-1]), "ends before its end"),
        (lambda: forged.write_bytes(whole[: len(whole) // 2]), "ends before"),
        (lambda: forged.write_bytes(b""), "ends before its head"),
        (lambda: forged.write_bytes(b"PK" + bytes(2000)), "does not begin with archive.json"),
        (lambda: forged.write_bytes(whole[512:]), "does not begin with archive.json"),
        (lambda: forge(forged, swapped), "out of order"),
        (lambda: forge(forged, twice), "twice"),
        (lambda: forge(forged, swapped, listed=False), "does not have the plain file"),
        (lambda: forge(forged, longer, listed=False), "does not have the plain file"),
        (
            lambda: forge(forged, [*members, (plain("zzz"), b"")], listed=False),
            "does not have its end",
        ),
    ]
    for make, why in cases:
        make()
        with pytest.raises(InputError, match=why):
            import_archive(other, forged)
    for index in (
        b"[]",
        b"{",
        b'{"format": 2, "run": "demo", "version": "x", "files": []}',
        b'{"format": 1}',
    ):
        forged.write_bytes(b"")
        with tarfile.open(forged, "w") as tar:
            head = plain("archive.json")
            head.size = len(index)
            tar.addfile(head, io.BytesIO(index))
        with pytest.raises(
            InputError, match=r"archive\.json cannot be read|format 2|no export wrote"
        ):
            import_archive(other, forged)
    assert content(other) == {}


def test_content_that_does_not_hash_to_its_names_is_refused(archive: Path, other: Store) -> None:
    def edit(part: str, old: bytes, new: bytes) -> Callable[[Members], Members]:
        def edited(members: Members) -> Members:
            at = position(members, part)
            assert old in members[at][1]
            return [
                *members[:at],
                (members[at][0], members[at][1].replace(old, new)),
                *members[at + 1 :],
            ]

        return edited

    def without(part: str) -> Callable[[Members], Members]:
        return lambda members: [
            each for index, each in enumerate(members) if index != position(members, part)
        ]

    unneeded = f"datasets/rewards/{'0' * 64}"
    cases: list[tuple[Callable[[Members], Members], str | None]] = [
        (edit("versions/0001", b'"seed": 0', b'"seed": 1'), "continues version|was edited"),
        (edit("versions/0002", b'"beta": 0.1', b'"beta": 0.2'), "was edited"),
        (edit("versions/0002", b'"run": "demo"', b'"run": "demi"'), None),
        (edit("prompts.jsonl", b"aaa", b"aab"), "prompts.jsonl"),
        (edit("model.safetensors", b"F32", b"F33"), "model.safetensors"),
        (edit("datasets/rewards", b'"rows": 4', b'"rows": 5'), "rows|edited"),
        (edit("datasets/generations", b"part-00000.arrow", b"../../../../x"), None),
        (without("versions/0001"), "continues version"),
        (without("datasets/prompts/"), None),
        (without("prompts.jsonl"), "lacks sources"),
        (
            lambda members: [
                *members[: position(members, "datasets/rewards")],
                (plain(f"{unneeded}/manifest.json"), b"{}"),
                *members[position(members, "datasets/rewards") :],
            ],
            "no version in it needs",
        ),
    ]
    for number, (change, why) in enumerate(cases):
        forged = archive.with_name(f"forged{number}.wind")
        forge(forged, change(members_of(archive)))
        with pytest.raises((InputError, DatasetError), match=why) as refused:
            import_archive(other, forged)
        assert str(forged) in str(refused.value), number
        assert "scratch" not in str(refused.value)
        assert "\n" not in str(refused.value)
    assert content(other) == {}


def test_any_flipped_bit_is_refused(archive: Path, other: Store, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    generator = random.Random(0)
    for _ in range(30):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        archive.write_bytes(flipped)
        with pytest.raises(WindError):
            import_archive(other, archive)
    assert content(other) == {}


def test_a_sparse_archive_is_refused_before_anything_is_unpacked(
    archive: Path, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index may list what nobody wrote; a file system hands it out as zeros."""
    with archive.open("rb") as file:
        index = ArchiveReader(file, archive).index()
    huge = index.model_copy(
        update={"files": [each.model_copy(update={"bytes": 2**42}) for each in _models(index)]}
    )
    content = huge.text()
    monkeypatch.setattr(ArchiveReader, "unpack", lambda *arguments: pytest.fail("began to unpack"))
    archive.write_bytes(header("archive.json", len(content)) + content + padding(len(content)))
    with pytest.raises(InputError, match=r"ends before the \d+ bytes that it lists: copy it again"):
        import_archive(other, archive)
    with archive.open("r+b") as file:
        file.truncate(2**43)
    with pytest.raises(
        InputError, match=r"holds \d+ bytes, but only \d+ are free at .*: free space, or give"
    ):
        import_archive(other, archive)
    assert not (other.root / "partial").exists()


def _models(index: Index) -> list[Member]:
    return [each for each in index.files if each.name.endswith(".safetensors")][:1]
