"""Archives: a version with everything before and below it in one file, which another machine
verifies and takes in.

An archive is an uncompressed tar. Unpacked it is a store without tags: the records of the version
and of all it continues, every dataset, model and source that those name or were made of, and what
lies beside them (check results, records of computations, the environments and patches that these
name). First comes `archive.json`, which lists each file with its size and sha256 in order of name.
All else follows from that list, to the last byte, so the same store gives the same archive, and a
reader accepts nothing but what the list describes: no link, no second copy, no name that leads
elsewhere, nothing behind the end.

What an import proves is content: every name that is a hash is recomputed before anything becomes
visible. Times, hosts, check results and the records of computations are what the sender says:
without our stamp, see `wind.store.stamps`, no run goes by them, unless the sender is trusted by
name, or has signed them (`wind.audit.signatures`). A run's cache is not part of an archive: whether
a key led to that content could not be verified.
"""

import hashlib
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, NoReturn

from pydantic import Field, ValidationError

from wind.config.base import Name
from wind.errors import ConfigError, DatasetError, InputError, first_line
from wind.exchange.exports import appearing, checked_chunks
from wind.records import Record
from wind.store import sealed_json
from wind.store.computations import BESIDE, recorded
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, folder_of
from wind.store.layout import MANIFEST, MODEL_FILES
from wind.store.origins import Origin, origins
from wind.store.pins import open_pin_set
from wind.store.provenance import ENVIRONMENTS, PATCHES, described_by
from wind.store.stamps import Kind, is_ours, restamped
from wind.store.storage import CHUNK_BYTES
from wind.store.versions import Version, Versions, history

if TYPE_CHECKING:
    from wind.audit.allowed_signers import Allowed

INDEX = "archive.json"
FORMAT = 1
BLOCK = 512
SIZE_AT = 124  # where a header says how large its file is
END = bytes(2 * BLOCK)
# the largest index, and the largest record, that is read: they are held in memory
INDEX_BYTES = 2**26

RUN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
NOUN = r"[a-z_]+(\.[a-z_]+)?"
DIGITS = r"[0-9a-f]{64}"
LEAF = r"(?!\.\.?$)[^/\\\x00-\x1f\x7f]{1,255}"
RECORDS = re.compile(
    rf"runs/{RUN}/versions/[0-9]{{4,9}}\.json|runs/{RUN}/signatures/{DIGITS}/{DIGITS}\.(json|sig)|"
    rf"(datasets/{NOUN}|models|sources)/{DIGITS}/{re.escape(MANIFEST)}|"
    rf"{ENVIRONMENTS}/{DIGITS}\.json|{PATCHES}/{DIGITS}\.patch|"
    rf"({'|'.join(BESIDE)})/{NOUN}/{DIGITS}(/[A-Za-z0-9_-]{{1,128}})?\.(json|html)"
)
# records by their folder
STAMPED: Final[dict[str, Kind]] = {"checks": "check", "computations": "computation"}
CONTENT = re.compile(
    rf"datasets/{NOUN}/{DIGITS}/part-[0-9]{{5,9}}\.arrow|sources/{DIGITS}/{LEAF}|models/{DIGITS}/(?P<model>{LEAF})"
)


class Member(Record):
    """One file of an archive."""

    name: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=f"^{DIGITS}$")]


class Index(Record):
    """What an archive holds."""

    format: int
    run: Name
    version: str  # id
    files: list[Member]


@dataclass(frozen=True)
class Imported:
    """What an import added."""

    version: Version
    versions: int  # records that were not there before
    stored: int  # datasets, models and sources that were not there before
    bytes: int  # verified


def export_archive(store: Store, version: Version, destination: Path) -> None:
    """Write `version`, what it continues and all those were made of to the file `destination`,
    which appears when it is whole.

    Raises DatasetError if any of it is missing or is not what its manifest says, ConfigError if
    `destination` is there already.
    """
    chain = history(store, version)
    members = sorted(_members(store, chain), key=lambda member: member.name)
    index = Index(format=FORMAT, run=version.run, version=version.id, files=members)
    content = _text(index)
    for member in members:
        if not _is_known(member) or len(content) > INDEX_BYTES:
            raise DatasetError(
                f"{store.storage.url}/{member.name} cannot be archived: rename what it was imported from"
            )
    with appearing(destination) as partial, partial.open("xb") as file:
        file.write(_header(INDEX, len(content)) + content + _padding(len(content)))
        for member in members:
            file.write(_header(member.name, member.bytes))
            for chunk in checked_chunks(store, member.name, member.bytes, member.sha256):
                file.write(chunk)
            file.write(_padding(member.bytes))
        file.write(END)


def import_archive(
    store: Store,
    archive: Path,
    run: str | None = None,
    trust: str | None = None,
    signed_by: Path | None = None,
) -> Imported:
    """Verify the archive at `archive` and take what it holds into `store`, its version as one of
    `run` or of the run it was in.

    Nothing is visible before all is verified; the versions come last, and say where they are from.
    What is there already stays as it is, so that a broken or repeated import ends the same. With
    `trust`, the name of the sender, its records of computations and checks count as ours; with
    `signed_by`, a file of public keys, those that the signatures of its versions cover. Raises
    InputError for a file that is not exactly an archive, DatasetError for content that does not
    hash to its names, or that is not signed, ConfigError where the run has another version of the
    same number.
    """
    if trust is not None and signed_by is not None:
        raise ConfigError(
            "--trust believes whatever the archive says, --signed-by what is signed: give one of the two"
        )
    for name, what in ((run, "a run"), (trust, "a sender")):
        if name is not None and not re.fullmatch(RUN, name):
            raise ConfigError(
                f"{name!r} cannot be {what}: use letters, digits, dot, dash and underscore"
            )
    allowed = None if signed_by is None else _allowed(signed_by)
    with archive.open("rb") as file:
        reader = _Reader(file, archive)
        index = reader.index()  # what is no archive leaves no store where there was none
        with open_pin_set(store.storage) as pin_set:
            # what it takes in is kept until its version is there
            store = Store(store.address, pin_set)
            reader.refuse_too_large(index, store.local)
            scratch = store.scratch("imports")
            try:
                _unpack(reader, index, scratch)
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
    """Raise ConfigError if `version` was taken in from somebody who was not trusted: its record
    says so for ever.
    """
    there = next(each for each in Versions(store, version.run) if each.id == version.id)
    if there.origins and not there.origins[-1].trusted:
        name = f"{version.run}@{version.number}"
        raise ConfigError(
            f"{name} was imported without --trust, as its record says: `wind forget {name}` first, or give --as"
        )


def _allowed(path: Path) -> "Allowed":
    from wind.audit.allowed_signers import Allowed  # cryptography, which no other import needs

    return Allowed(path)


@dataclass(frozen=True)
class _Sender:
    """From whom a version of an archive is, and what of it is believed."""

    origin: Origin
    # files of computations and check results; None for all there are
    records: frozenset[str] | None
    signature: str = ""  # the stem of the files of the signature that says so


def _senders(
    staged: Store,
    chain: Sequence[Version],
    archive: Path,
    trust: str | None,
    allowed: "Allowed | None",
) -> list[_Sender]:
    """From whom each version of `chain` is. Raises DatasetError if one is not signed as it is,
    where keys are `allowed`.
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


def reachable(store: Store, versions: Sequence[Version]) -> list[AnyHandle]:
    """Everything stored that `versions` name and all that was made of, each after its own parents
    and outputs.
    """
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


def _members(store: Store, chain: Sequence[Version]) -> Iterator[Member]:
    """The files of an archive of `chain`, as the store has them."""
    described: set[str] = set()
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
        for beside in BESIDE:
            prefix = f"{beside}/{folder.removeprefix('datasets/')}"
            for name in [
                f"{prefix}.json",
                f"{prefix}.html",
                *(f"{prefix}/{name}" for name in store.storage.names(prefix)),
            ]:
                if RECORDS.fullmatch(name) and store.storage.size(name) is not None:
                    yield _record(store, name)
        described.update(
            name for each in recorded(store, handle) for name in described_by(each.provenance)
        )
    yield from (_record(store, name) for name in described if store.storage.size(name) is not None)


def _record(store: Store, name: str) -> Member:
    content = store.storage.read(name)
    return Member(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _unpack(reader: "_Reader", index: Index, folder: Path) -> None:
    """Write every file that the index lists, with the size and sha256 it says, below `folder`, and
    read to the end.
    """
    for member in index.files:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        reader.expect(
            _header(member.name, member.bytes),
            f"the plain file {member.name} of {member.bytes} bytes",
        )
        hasher = hashlib.sha256()
        with path.open("xb") as copy:
            for chunk in reader.chunks(member.bytes):
                hasher.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())  # it is published by a rename, which must not come first
        if hasher.hexdigest() != member.sha256:
            reader.refuse(f"has a {member.name} without the sha256 that it lists: it is damaged")
        reader.expect(_padding(member.bytes), f"the end of {member.name}")
    reader.end()


class _Reader:
    """Reads an archive front to back and accepts nothing but the bytes that its index calls for."""

    def __init__(self, file: BinaryIO, archive: Path) -> None:
        self._file = file
        self._archive = archive

    def index(self) -> Index:
        """The first file. Raises InputError unless it is the index of an archive, each of its names
        one that a store has.
        """
        head = self._take(BLOCK, "its head")
        digits = re.match(rb"[0-7]{11}\0", head[SIZE_AT:])
        size = int(digits[0][:-1], 8) if digits else 0
        if head != _header(INDEX, size) or size > INDEX_BYTES:
            self.refuse(f"is not an archive of `wind export`: it does not begin with {INDEX}")
        content = self._take(size, INDEX)
        self.expect(_padding(size), f"the end of {INDEX}")
        try:
            index = Index.model_validate_json(content)
        except ValidationError as error:
            raise InputError(
                f"{self._archive}: {INDEX} cannot be read: {first_line(error)}"
            ) from error
        if index.format != FORMAT:
            self.refuse(
                f"has format {index.format}, this release reads {FORMAT}: use the release that made it"
            )
        if _text(index) != content:
            self.refuse(f"has an {INDEX} that no export wrote: it is damaged or not what it says")
        names = [member.name for member in index.files]
        if names != sorted(set(names)):
            self.refuse("lists a file twice or out of order")
        for member in index.files:
            if not _is_known(member):
                self.refuse(
                    f"lists {member.name!r} of {member.bytes} bytes, which is no file of a version"
                )
        return index

    def refuse_too_large(self, index: Index, folder: Path) -> None:
        """Raise InputError if the archive is shorter than its `index` says, or if what it holds has
        no room in `folder`.

        A sparse file claims sizes that nobody wrote: unpacked, it would fill the disk before its
        end shows what it is.
        """
        wanted = sum(
            BLOCK + member.bytes + len(_padding(member.bytes)) for member in index.files
        ) + len(END)
        if os.fstat(self._file.fileno()).st_size - self._file.tell() < wanted:
            self.refuse(f"ends before the {wanted} bytes that it lists: copy it again")
        free = shutil.disk_usage(
            next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        ).free
        if free < wanted:
            self.refuse(
                f"holds {wanted} bytes, and there are {free} free at {folder}: free space, or give another --root"
            )

    def chunks(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes."""
        while size:
            chunk = self._take(min(size, CHUNK_BYTES), "the content that it lists")
            size -= len(chunk)
            yield chunk

    def expect(self, wanted: bytes, what: str) -> None:
        """Read `wanted`. Raises InputError if anything else comes."""
        if self._take(len(wanted), what) != wanted:
            self.refuse(f"does not have {what} where it should: it is damaged or not what it says")

    def end(self) -> None:
        """Read the end. Raises InputError if it is not there, or if anything comes behind it."""
        self.expect(END, "its end")
        if self._file.read(1):
            self.refuse("goes on behind its end: it is damaged or not what it says")

    def refuse(self, why: str) -> NoReturn:
        """Raise InputError about the archive."""
        raise InputError(f"{self._archive} {why}")

    def _take(self, size: int, what: str) -> bytes:
        content = self._file.read(size)
        if len(content) != size:
            self.refuse(f"ends before {what}: copy it again")
        return content


def _verified(staged: Store, index: Index, archive: Path) -> list[Version]:
    """The versions of an unpacked archive, the first first.

    Raises InputError unless they and what they need are all there is, DatasetError unless all of it
    is what its name says.
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
    """The versions of an unpacked archive, the first first."""
    versions = {version.id: version for run in _runs(index) for version in Versions(staged, run)}
    if index.version not in versions:
        raise InputError(f"{archive} does not hold the version {index.version[:12]} that it is of")
    chain = history(staged, versions[index.version])
    if chain[-1].run != index.run:
        raise InputError(
            f"{archive} says it is of run {index.run}, its version says {chain[-1].run}"
        )
    wanted = {member.name for member in _members(staged, chain)}
    listed = {member.name for member in index.files}
    if wanted != listed:
        some = min(wanted ^ listed)
        raise InputError(
            f"{archive} {'lacks' if some in wanted else 'has, and no version in it needs,'} {some}"
        )
    return chain


def _runs(index: Index) -> list[str]:
    return sorted(
        {member.name.split("/")[1] for member in index.files if member.name.startswith("runs/")}
    )


def _adopt(
    store: Store,
    staged: Store,
    chain: Sequence[Version],
    renamed: Sequence[Version],
    index: Index,
    senders: Sequence[_Sender],
) -> Imported:
    """Let everything staged appear in `store`: content first, then what lies beside it, the
    versions last.
    """
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
    """Keep the signatures that came along, but for versions under another name: it is signed, too."""
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
    """Keep a record that came beside the content, as it is; with our stamp if the sender is
    trusted.
    """
    kind = STAMPED.get(name.split("/")[0]) if name.endswith(".json") else None
    if kind is None or not is_trusted:
        store.storage.create(name, content)
    elif not store.storage.create(name, restamped(kind, content)) and not is_ours(
        kind, sealed_json.read_unsealed(store.storage.read(name))
    ):
        store.storage.write(name, restamped(kind, content))


def _text(index: Index) -> bytes:
    return index.model_dump_json(indent=1).encode()


def _header(name: str, size: int) -> bytes:
    """The header of a plain file in an archive, the same for the same name and size."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header.tobuf(tarfile.PAX_FORMAT)


def _is_known(member: Member) -> bool:
    """Whether an archive may have this file: one that a version can need, under the name it has in
    a store.
    """
    if RECORDS.fullmatch(member.name):
        return member.bytes <= INDEX_BYTES
    content = CONTENT.fullmatch(member.name)
    return content is not None and (
        content["model"] is None or MODEL_FILES.match(content["model"]) is not None
    )


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)
