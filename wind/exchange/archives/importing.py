"""Importing an archive: verify it in a scratch folder, then publish it."""

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wind.errors import ConfigError, DatasetError, InputError
from wind.exchange.archives.exporting import archive_members, reachable
from wind.exchange.archives.layout import RUN, Index
from wind.exchange.archives.reader import ArchiveReader
from wind.store import sealed_json
from wind.store.computations import BESIDE
from wind.store.datasets import Store
from wind.store.origins import Origin, origins
from wind.store.pins import open_pin_set
from wind.store.provenance import ENVIRONMENTS, PATCHES
from wind.store.stamps import Kind, is_ours, restamped
from wind.store.versions import Version, Versions, history

if TYPE_CHECKING:
    from wind.audit.allowed_signers import Allowed

STAMPED: Final[dict[str, Kind]] = {"checks": "check", "computations": "computation"}  # by folder


@dataclass(frozen=True)
class Imported:
    """Counts of what an import added."""

    version: Version
    versions: int  # records that were not there before
    stored: int  # datasets, models and sources that were not there before
    bytes: int  # verified


@dataclass(frozen=True)
class _Sender:
    """The origin of a version, and which of its records are trusted."""

    origin: Origin
    records: frozenset[str] | None  # files of computations and check results; None for all
    signature: str = ""  # the stem of the signature's files, where a signature says so


def import_archive(
    store: Store,
    archive: Path,
    run: str | None = None,
    trust: str | None = None,
    signed_by: Path | None = None,
) -> Imported:
    """Verify the archive at `archive`, then add everything in it to `store`.

    Its version becomes one of `run`, or of the run it came from. Nothing is visible before all of
    it is verified; the versions come last and record their origin. What the store already has stays
    as it is, so an import that broke off or is repeated has the same result.

    With `trust`, the name of the sender, its records of computations and checks count as ours; with
    `signed_by`, a file of public keys, those count that the signatures of its versions cover.

    Raises InputError for a file that is not exactly an archive, DatasetError for content that does
    not hash to its names or is not signed, ConfigError if the run has another version of the same
    number.
    """
    if trust is not None and signed_by is not None:
        raise ConfigError(
            "--trust believes whatever the archive says, --signed-by what is signed: "
            "give one of the two"
        )
    for name, what in ((run, "a run"), (trust, "a sender")):
        if name is not None and not re.fullmatch(RUN, name):
            raise ConfigError(
                f"{name!r} cannot be {what}: use letters, digits, dot, dash and underscore"
            )
    allowed = None if signed_by is None else _allowed(signed_by)
    with archive.open("rb") as file:
        reader = ArchiveReader(file, archive)
        index = reader.index()  # before a store is made: a file that is no archive leaves none
        with open_pin_set(store.storage) as pin_set:
            # What is imported is pinned until its version is there.
            store = Store(store.address, pin_set)
            reader.refuse_too_large(index, store.local)
            scratch = store.scratch("imports")
            try:
                reader.unpack(index, scratch)
                staged = Store(scratch)
                chain = _verified(staged, index, archive)
                senders = _senders(staged, chain, archive, trust, allowed)
                target = run or index.run
                renamed = [
                    each.model_copy(update={"run": target}) if each.run == index.run else each
                    for each in chain
                ]
                for version in renamed:
                    if Versions(store, version.run).has(version) and senders[0].origin.trusted:
                        _refuse_late_trust(store, version)
                return _adopt(store, staged, chain, renamed, index, senders)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _refuse_late_trust(store: Store, version: Version) -> None:
    """Raise ConfigError if `version` was imported before without trust.

    Its record states the origin and is never rewritten.
    """
    there = next(each for each in Versions(store, version.run) if each.id == version.id)
    if there.origins and not there.origins[-1].trusted:
        name = f"{version.run}@{version.number}"
        raise ConfigError(
            f"{name} was imported without --trust, as its record says: "
            f"`wind forget {name}` first, or give --as"
        )


def _allowed(path: Path) -> "Allowed":
    from wind.audit.allowed_signers import Allowed  # cryptography, which no other import needs

    return Allowed(path)


def _senders(
    staged: Store,
    chain: Sequence[Version],
    archive: Path,
    trust: str | None,
    allowed: "Allowed | None",
) -> list[_Sender]:
    """Return the sender of each version of `chain`.

    Raises DatasetError if keys are `allowed` and a version has no valid signature by one of them.
    """
    now = time.time()
    if allowed is None:
        origin = Origin(sender=trust or archive.name, trusted=trust is not None, imported=now)
        return [_Sender(origin, frozenset() if trust is None else None)] * len(chain)
    from wind.audit import signatures

    found = [signatures.signed(staged, version, allowed) for version in chain]
    try:
        signatures.require(found)
    except DatasetError as error:
        raise DatasetError(f"{archive}: {error}; nothing was imported") from error
    return [
        _Sender(Origin(sender=each.signer, trusted=True, imported=now), each.records, each.stem)
        for each in found
    ]


def _verified(staged: Store, index: Index, archive: Path) -> list[Version]:
    """Verify an unpacked archive and return its versions, the first iteration first.

    Raises InputError unless it holds exactly these and what they need, DatasetError unless all of
    it is what its names say.
    """
    # polars: half a second that other commands do not need
    from wind.audit.verification import Verification

    try:
        chain = _history(staged, index, archive)
        verification = Verification(staged, is_excerpt=True)
        for version in chain:
            verification.version(version.run, version.number)
        verification.require()
        return chain
    except DatasetError as error:
        place = staged.storage.url
        raise DatasetError(
            f"{archive}: {str(error).replace(f'{place}/', '').replace(place, 'it')}"
        ) from error


def _history(staged: Store, index: Index, archive: Path) -> list[Version]:
    """Return the versions of an unpacked archive, the first iteration first."""
    runs = sorted(
        {member.name.split("/")[1] for member in index.files if member.name.startswith("runs/")}
    )
    versions = {version.id: version for run in runs for version in Versions(staged, run)}
    if index.version not in versions:
        raise InputError(
            f"{archive} does not hold version {index.version[:12]}, which its index names"
        )
    chain = history(staged, versions[index.version])
    if chain[-1].run != index.run:
        raise InputError(
            f"{archive} says it is of run {index.run}, its version says {chain[-1].run}"
        )
    wanted = {member.name for member in archive_members(staged, chain)}
    listed = {member.name for member in index.files}
    if wanted != listed:
        some = min(wanted ^ listed)
        raise InputError(
            f"{archive} lacks {some}"
            if some in wanted
            else f"{archive} has {some}, which no version in it needs"
        )
    return chain


def _adopt(
    store: Store,
    staged: Store,
    chain: Sequence[Version],
    renamed: Sequence[Version],
    index: Index,
    senders: Sequence[_Sender],
) -> Imported:
    """Publish everything staged: content first, records beside it, versions last."""
    stored = 0
    for handle in reachable(staged, chain):
        manifest = staged.manifest(handle)
        if not store.pin_if_whole(handle):
            store.adopt(staged.path(handle), handle, manifest)
            stored += 1
    for member in index.files:
        if member.name.startswith((*BESIDE, ENVIRONMENTS, PATCHES)):
            is_trusted = any(
                each.records is None or member.name in each.records for each in senders
            )
            _keep(store, member.name, staged.storage.read(member.name), is_trusted=is_trusted)
    came = [
        version.model_copy(update={"origins": origins(staged, sent, sender.origin)})
        for sent, version, sender in zip(chain, renamed, senders, strict=True)
    ]
    _take_signatures(store, staged, chain, renamed, senders)
    added = sum(Versions(store, version.run).adopt(version) for version in came)
    return Imported(came[-1], added, stored, sum(member.bytes for member in index.files))


def _take_signatures(
    store: Store,
    staged: Store,
    chain: Sequence[Version],
    renamed: Sequence[Version],
    senders: Sequence[_Sender],
) -> None:
    """Keep the signatures of versions that keep their name.

    The name is part of what was signed.
    """
    same = [
        (version, sender)
        for sent, version, sender in zip(chain, renamed, senders, strict=True)
        if sent.run == version.run
    ]
    for version, sender in same:
        if staged.storage.names(version.signatures()):
            from wind.audit import signatures  # cryptography, which no other import needs

            signatures.take(store, staged, version, sender.signature)


def _keep(store: Store, name: str, content: bytes, *, is_trusted: bool) -> None:
    """Store a record as it came, with our stamp if trusted."""
    kind = STAMPED.get(name.split("/")[0]) if name.endswith(".json") else None
    if kind is None or not is_trusted:
        store.storage.create(name, content)
    elif not store.storage.create(name, restamped(kind, content)) and not is_ours(
        kind, sealed_json.read_unsealed(store.storage.read(name))
    ):
        store.storage.write(name, restamped(kind, content))
