"""Signed versions: somebody with a key vouches for a version.

Others can rely on a signature wherever the version has been moved. It covers a statement, which is
canonical JSON. It has the version's id, which binds all content, its name, and the digests of what
no hash binds: the record of the version, except for what changes when it moves; the records of the
computations and check results that it names; and what the manifests claim. What the statement of an
earlier version says, which is signed on its own, is not repeated. Statement and signature are next
to each other, in `<root>/runs/<run>/signatures/<version id>/<sha256 of the key>.json` and `.sig`,
so that `ssh-keygen -Y verify -n wind-version` can check them too.
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
# fields of a version's record that `Versions.adopt` rewrites
MOVING: Final = {
    "manifests",
    "number_before",
    "digest_before",
    "origins",
    STAMP,
    sealed_json.DIGEST,
}
# fields of other records that differ when the same is computed or checked again
AGAIN: Final = ("provenance", "page_sha256", "frames")
KINDS: Final[dict[str, Kind]] = {"checks": "check", "computations": "computation"}

RecordName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(checks|computations)/[a-z_]+(\.[a-z_]+)?/[0-9a-f]{64}/[0-9a-f]{64}\.json$"
    ),
]


class Statement(Record):
    """The statement about a version that a signature covers."""

    format: Literal["wind-version 1"] = "wind-version 1"
    version: Key  # id
    name: str  # RUN@NUMBER
    record: Key  # digest of its own record
    records: dict[RecordName, Seal]  # of computations and check results, by file
    manifests: dict[Folder, Key]  # digest of what each claims, by folder

    def text(self) -> bytes:
        """Return the bytes that are signed."""
        return canonical(self.model_dump(mode="json")).encode()


@dataclass(frozen=True)
class Signed:
    """The trusted signer of a version, or why there is none."""

    version: Version
    signer: str = ""
    key: str = ""  # its fingerprint
    stem: str = ""  # the signature's file without .sig
    records: frozenset[str] = frozenset()  # the files of records that it covers
    notes: tuple[str, ...] = ()
    problem: str = ""

    def name(self) -> str:
        """Return the name of the version, RUN@NUMBER."""
        return f"{self.version.run}@{self.version.number}"

    def report(self) -> dict[str, Any]:
        """Return the outcome, ready for JSON."""
        return {
            "version": self.name(),
            "signer": self.signer,
            "key": self.key,
            "notes": self.notes,
            "problem": self.problem,
        }


def statements(store: Store, chain: Sequence[Version]) -> list[Statement]:
    """Return the statement to sign for each version of `chain`.

    The statements are in the order of `chain`, the first iteration first. The versions must have
    been verified.
    """
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


def keep(store: Store, version: Version, statement: bytes, armored: bytes) -> str:
    """Store a signature of `version`, replacing one by the same key.

    Returns the fingerprint of the key. Raises SignatureError if the signature is not one of
    `statement`.
    """
    signature = parsed_signature(armored)
    signature.require(statement, NAMESPACE)
    stem = f"{version.signatures()}/{_file_name(signature)}"
    # A crash must not leave half of the old pair and half of the new: that would look forged.
    store.storage.delete(f"{stem}.sig")
    store.storage.write(f"{stem}.json", statement)
    store.storage.write(f"{stem}.sig", armored)
    return fingerprint(signature.blob)


def take(store: Store, staged: Store, version: Version, verified: str) -> None:
    """Store the signatures that came with `version`.

    A signature that the store already has is replaced only by the one with the stem `verified`.
    """
    for stem in _stems(staged, version):
        if stem == verified or store.storage.size(f"{stem}.sig") is None:
            try:
                signature, statement = _opened(staged, stem)
                signature.require(statement, NAMESPACE)
                keep(store, version, statement, staged.storage.read(f"{stem}.sig"))
            except SignatureError:
                continue  # an invalid signature is worth nothing to anybody


def signed(store: Store, version: Version, allowed: Allowed) -> Signed:
    """Find a signature of `version` by one of the `allowed` keys.

    One signature that is valid for the version as it is in the store is enough. The version must
    have been verified: its content has its id.
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
    """Compare a signed statement with the store; return it with notes.

    The notes list what has changed since it was signed, with our own stamp vouching for the change.
    Raises SignatureError if the statement is about another version, or if anything else differs.
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
    # whether we published the version's record, which has the seals of the manifests here
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
    """Read a stored signature and its statement.

    Raises SignatureError if either cannot be read, or if they are filed under another key.
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
    """List `handles` and their ancestors that are not yet in `entered`.

    Adds them to `entered`.
    """
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
    """Yield the files of computations and check results that `version` names.

    Only records about one of `handles` are yielded.
    """
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
    """Return a digest of a version's record, the same in every store.

    Fields at their defaults are left out, so those that a later release adds do not change it.
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
