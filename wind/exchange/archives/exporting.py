"""Writing an archive: which files a version needs, in their order."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from wind.errors import DatasetError
from wind.exchange.archives.layout import (
    END,
    FORMAT,
    INDEX,
    INDEX_BYTES,
    RECORDS,
    Index,
    Member,
    header,
    padding,
)
from wind.exchange.exports import appearing, checked_chunks
from wind.store.computations import BESIDE, recorded
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, folder_of
from wind.store.layout import MANIFEST
from wind.store.provenance import described_by
from wind.store.versions import Version, history


def export_archive(store: Store, version: Version, destination: Path) -> None:
    """Write `version` and everything it relies on to the file `destination`.

    The file appears when it is whole. Raises DatasetError if anything is missing or differs from
    its manifest, ConfigError if `destination` already exists.
    """
    chain = history(store, version)
    members = sorted(archive_members(store, chain), key=lambda member: member.name)
    index = Index(format=FORMAT, run=version.run, version=version.id, files=members)
    content = index.text()
    for member in members:
        if not member.is_expected() or len(content) > INDEX_BYTES:
            raise DatasetError(
                f"{store.storage.url}/{member.name} cannot be archived: "
                "rename what it was imported from"
            )
    with appearing(destination) as partial, partial.open("xb") as file:
        file.write(header(INDEX, len(content)) + content + padding(len(content)))
        for member in members:
            file.write(header(member.name, member.bytes))
            for chunk in checked_chunks(store, member.name, member.bytes, member.sha256):
                file.write(chunk)
            file.write(padding(member.bytes))
        file.write(END)


def reachable(store: Store, versions: Sequence[Version]) -> list[AnyHandle]:
    """List what `versions` name and were made from, parents and outputs first."""
    found: dict[AnyHandle, None] = {}
    entered: set[AnyHandle] = set()
    waiting = [handle for version in versions for handle in version.handles().values()]
    while waiting:
        handle = waiting[-1]
        if handle not in entered:
            entered.add(handle)
            manifest = store.manifest(handle)
            waiting += [
                each
                for each in (*manifest.parents.values(), *manifest.outputs.values())
                if each not in entered
            ]
        else:
            found[waiting.pop()] = None
    return list(found)


def archive_members(store: Store, chain: Sequence[Version]) -> Iterator[Member]:
    """Yield the files of an archive of `chain`.

    Sizes and sha256 are those that the store has.
    """
    described: set[str] = set()  # environments and patches
    for version in chain:
        yield _record(store, version.file())
        for name in store.storage.names(version.signatures()):
            if RECORDS.fullmatch(f"{version.signatures()}/{name}"):
                yield _record(store, f"{version.signatures()}/{name}")
    for handle in reachable(store, chain):
        folder = folder_of(handle)
        yield _record(store, f"{folder}/{MANIFEST}")
        described.update(described_by(store.manifest(handle).provenance))
        for file in store.manifest(handle).files:
            yield Member(name=f"{folder}/{file.name}", bytes=file.bytes, sha256=file.sha256)
        yield from (_record(store, name) for name in _beside(store, folder))
        described.update(
            name for each in recorded(store, handle) for name in described_by(each.provenance)
        )
    yield from (_record(store, name) for name in described if store.storage.size(name) is not None)


def _beside(store: Store, folder: str) -> Iterator[str]:
    """Yield the check results and records of computations about a folder."""
    for tree in BESIDE:
        prefix = f"{tree}/{folder.removeprefix('datasets/')}"
        names = [f"{prefix}/{name}" for name in store.storage.names(prefix)]
        for name in (f"{prefix}.json", f"{prefix}.html", *names):
            if RECORDS.fullmatch(name) and store.storage.size(name) is not None:
                yield name


def _record(store: Store, name: str) -> Member:
    content = store.storage.read(name)
    return Member(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
