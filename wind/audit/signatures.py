"""Signed versions: whoever holds a key says what exactly a version is, and others believe it
wherever the version has moved.

A signature is over a statement, canonical JSON with the version's id, which binds all content, its
name, and the digests of what no hash binds: its own record but for what changes when it moves, the
records of the computations and check results that it names, and what manifests claim. What a
version before it has stated, which is signed on its own, is not said again. Statement and signature
lie beside each other, `<root>/runs/<run>/signatures/<version id>/<sha256 of the key>.json` and
`.sig`, so that `ssh-keygen -Y verify -n wind-version` can judge them too.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import StringConstraints, ValidationError

from wind.audit.allowed_signers import Allowed
from wind.audit.ssh_signatures import Signature, SignatureError, fingerprint, parsed_signature
from wind.errors import DatasetError, first_line
from wind.fingerprints import canonical, digest
from wind.records import Record
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, folder_of, noun
from wind.store.layout import MANIFEST
from wind.store.seals import Seal, seal_of
from wind.store.stamps import STAMP, Kind, is_ours
from wind.store.versions import Folder, Key, Version

NAMESPACE: Final = "wind-version"
# what `Versions.adopt` says anew
MOVING: Final = {
    "manifests",
    "number_before",
    "digest_before",
    "origins",
    STAMP,
    sealed_json.DIGEST,
}
# of a record: what is other when the same is computed or checked again
AGAIN: Final = ("provenance", "page_sha256", "frames")
KINDS: Final[dict[str, Kind]] = {"checks": "check", "computations": "computation"}

RecordName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(checks|computations)/[a-z_]+(\.[a-z_]+)?/[0-9a-f]{64}/[0-9a-f]{64}\.json$"
    ),
]


class Statement(Record):
    """What is signed of a version."""

    format: Literal["wind-version 1"] = "wind-version 1"
    version: Key  # id
    name: str  # RUN@NUMBER
    record: Key  # digest of its own record
    records: dict[RecordName, Seal]  # of computations and check results, by file
    manifests: dict[Folder, Key]  # digest of what each claims, by folder

    def text(self) -> bytes:
        """The bytes that are signed."""
        return canonical(self.model_dump(mode="json")).encode()


@dataclass(frozen=True)
class Signed:
    """By whom a version is signed, or why by nobody who is believed."""

    version: Version
    signer: str = ""
    key: str = ""  # its fingerprint
    stem: str = ""  # the signature's file without .sig
    records: frozenset[str] = frozenset()  # the files of records that it covers
    notes: tuple[str, ...] = ()
    problem: str = ""

    def name(self) -> str:
        """The name of the version."""
        return f"{self.version.run}@{self.version.number}"

    def report(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return {
            "version": self.name(),
            "signer": self.signer,
            "key": self.key,
            "notes": self.notes,
            "problem": self.problem,
        }


def statements(store: Store, chain: Sequence[Version]) -> list[Statement]:
    """What is to be signed of each version of `chain`, the first first; they have been verified."""
    stated: set[str] = set()
    entered: set[AnyHandle] = set()
    found = []
    for version in chain:
        made = {*version.handles().values()}
        made |= {output for handle in made for output in store.manifest(handle).outputs.values()}
        new = _reached(store, made, entered)
        names = sorted({*_named_records(store, version, made | {*new})} - stated)
        stated.update(names)
        found.append(
            Statement(
                version=version.id,
                name=f"{version.run}@{version.number}",
                record=_digest_of(version),
                records={name: _seal(sealed_json.read(store.storage.read(name))) for name in names},
                manifests={folder_of(handle): _claims(store, folder_of(handle)) for handle in new},
            )
        )
    return found


def keep(store: Store, version: Version, statement: bytes, armoured: bytes) -> str:
    """Keep a signature of `version`, in place of one by the same key; returns the key's
    fingerprint.

    Raises SignatureError if it does not hold for `statement`.
    """
    signature = parsed_signature(armoured)
    signature.require(statement, NAMESPACE)
    stem = f"{version.signatures()}/{_file_name(signature)}"
    # a half of each, which a crash could leave, would look forged
    store.storage.delete(f"{stem}.sig")
    store.storage.write(f"{stem}.json", statement)
    store.storage.write(f"{stem}.sig", armoured)
    return fingerprint(signature.blob)


def take(store: Store, staged: Store, version: Version, verified: str) -> None:
    """Keep what signatures came with `version`; one that is here already gives way only to that
    with the stem `verified`.
    """
    for stem in _stems(staged, version):
        if stem == verified or store.storage.size(f"{stem}.sig") is None:
            try:
                signature, statement = _opened(staged, stem)
                signature.require(statement, NAMESPACE)
                keep(store, version, statement, staged.storage.read(f"{stem}.sig"))
            except SignatureError:
                continue  # it says nothing to anybody


def signed(store: Store, version: Version, allowed: Allowed) -> Signed:
    """By which of the `allowed` keys `version` is signed as it is in the store: one good signature
    is enough.

    The version was verified: its content has its id.
    """
    problems: list[tuple[bool, str]] = []
    for stem in _stems(store, version):
        is_known = True
        try:
            signature, text = _opened(store, stem)
            is_known = allowed.has(signature.blob)
            signer = allowed.principal(signature.blob, NAMESPACE)
            signature.require(text, NAMESPACE)
            statement, notes = _compared(store, version, text, signer)
            return Signed(
                version,
                signer,
                fingerprint(signature.blob),
                stem,
                frozenset(statement.records),
                notes,
            )
        except SignatureError as error:
            problems.append((not is_known, f"{stem}.sig {error}"))
    reason = (
        min(problems)[1]
        if problems
        else f"has no signature: `wind sign` it with a key that {allowed.path} lists"
    )
    return Signed(
        version, problem=f"{version.run}@{version.number}{':' if problems else ''} {reason}"
    )


def require(found: Sequence[Signed]) -> None:
    """Raise DatasetError with the first problem, if there is one."""
    problems = [each.problem for each in found if each.problem]
    if problems:
        raise DatasetError(
            f"{problems[0]}{f'; and {len(problems) - 1} more' if problems[1:] else ''}"
        )


def _compared(
    store: Store, version: Version, text: bytes, signer: str
) -> tuple[Statement, tuple[str, ...]]:
    """The statement `text`, which was signed, and what of it is other now although our own stamp
    vouches for it.

    Raises SignatureError if it is of another version, or if anything else is other.
    """
    try:
        statement = Statement.model_validate_json(text)
    except ValidationError as error:
        raise SignatureError(
            f"is not of a statement about a version ({first_line(error)}): `wind sign` it again"
        ) from error
    if (statement.version, statement.name) != (version.id, f"{version.run}@{version.number}"):
        raise SignatureError(
            f"is of {statement.name} with the id {statement.version[:12]}: it was moved"
        )
    if statement.record != _digest_of(version):
        raise SignatureError(
            f"is of another record than {version.file()}, which is not as {signer} signed it"
        )
    notes = []
    for name, seal in statement.records.items():
        fields = _fields(store, name, signer)
        now = _seal(fields)
        if now.claims != seal.claims or (
            now != seal and not is_ours(KINDS[name.split("/")[0]], fields)
        ):
            raise SignatureError(f"is of another {name}, which is not as {signer} signed it")
        notes += [f"{name} was made here again since {signer} signed it"] if now != seal else []
    # with the manifests that are here
    is_sealed_here = is_ours(
        "version", sealed_json.read_unsealed(store.storage.read(version.file()))
    )
    for folder, claims in statement.manifests.items():
        name = f"{folder}/{MANIFEST}"
        if seal_of(_fields(store, name, signer)).claims != claims:
            if not is_sealed_here:
                raise SignatureError(f"is of another {name}, which is not as {signer} signed it")
            notes.append(f"{name} is of another computation than that which {signer} signed")
    return statement, tuple(notes)


def _fields(store: Store, name: str, signer: str) -> dict[str, Any]:
    try:
        return sealed_json.read(store.storage.read(name))
    except FileNotFoundError as error:
        raise SignatureError(f"is of {name} too, which is missing") from error
    except (OSError, ValueError) as error:
        raise SignatureError(
            f"is of {name} too, which {first_line(error)}: it is not as {signer} signed it"
        ) from error


def _opened(store: Store, stem: str) -> tuple[Signature, bytes]:
    """A stored signature and its statement. Raises SignatureError if they cannot be read, or lie
    under another key's name.
    """
    try:
        signature = parsed_signature(store.storage.read(f"{stem}.sig"))
        if _file_name(signature) != stem.rpartition("/")[2]:
            raise SignatureError("is by another key than its name says: it was moved")
        return signature, store.storage.read(f"{stem}.json")
    except OSError as error:
        raise SignatureError(
            f"cannot be read with its statement ({error.strerror or first_line(error)})"
        ) from error


def _stems(store: Store, version: Version) -> list[str]:
    names = store.storage.names(version.signatures())
    return [
        f"{version.signatures()}/{name.removesuffix('.sig')}"
        for name in names
        if name.endswith(".sig")
    ]


def _file_name(signature: Signature) -> str:
    return hashlib.sha256(signature.blob).hexdigest()


def _reached(store: Store, handles: set[AnyHandle], entered: set[AnyHandle]) -> list[AnyHandle]:
    """`handles` and all that they were made of, without what was `entered` before; enters it."""
    waiting, found = [*handles], []
    while waiting:
        handle = waiting.pop()
        if handle not in entered:
            entered.add(handle)
            found.append(handle)
            manifest = store.manifest(handle)
            waiting += [*manifest.parents.values(), *manifest.outputs.values()]
    return found


def _named_records(store: Store, version: Version, handles: set[AnyHandle]) -> Iterator[str]:
    """The files of the computations and check results of `handles` that `version` names."""
    named = {
        "checks": {*version.check_results.values()},
        "computations": {*version.computations.values()},
    }
    for handle in handles:
        for tree, keys in named.items():
            folder = f"{tree}/{noun(handle)}/{handle.fingerprint}"
            yield from (
                f"{folder}/{name}"
                for name in store.storage.names(folder)
                if name.removesuffix(".json") in keys
            )


def _digest_of(version: Version) -> str:
    """The digest of the record of `version` as it is in any store; fields that a later release adds
    change nothing.
    """
    return digest(version.model_dump(mode="json", exclude=MOVING, exclude_defaults=True))


def _seal(record: Mapping[str, Any]) -> Seal:
    fields = {
        name: value for name, value in record.items() if name not in (STAMP, sealed_json.DIGEST)
    }
    return Seal(
        digest=digest(fields),
        claims=digest({name: value for name, value in fields.items() if name not in AGAIN}),
    )


def _claims(store: Store, folder: str) -> str:
    return seal_of(sealed_json.read(store.storage.read(f"{folder}/{MANIFEST}"))).claims
