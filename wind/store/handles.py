"""Handles: what names stored content, and the manifest that tells of it. The only thing that tasks
pass to one another.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field, TypeAdapter

from wind.fingerprints import digest
from wind.records import Record

FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")
# No folder, none of the names that lead out of one, and nothing that a terminal obeys, line ends
# included.
PLAIN_NAME = r"^([^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*|\.[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)$"


class Handle(Record):
    """A frozen record that names stored content; the only thing tasks pass to one another."""


class Dataset(Handle):
    """The name of a dataset: its noun, the fingerprint of its content, its rows."""

    name: str = Field(pattern=r"^[a-z_]+(\.[a-z_]+)?$")
    fingerprint: str = Field(pattern=FINGERPRINT.pattern)
    rows: int = Field(ge=0)


class Model(Handle):
    """The name of a stored Hugging Face model folder."""

    fingerprint: str = Field(pattern=FINGERPRINT.pattern)
    parameters: int = Field(ge=0)


class Source(Handle):
    """The name of a stored copy of an input from outside: the files prompts are read from."""

    fingerprint: str = Field(pattern=FINGERPRINT.pattern)
    files: int = Field(ge=1)


AnyHandle = Dataset | Model | Source
HANDLE: Final[TypeAdapter[AnyHandle]] = TypeAdapter(AnyHandle)


class StoredFile(Handle):
    """One file of a dataset or model, by its name within the folder."""

    name: str = Field(pattern=PLAIN_NAME, max_length=255)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=FINGERPRINT.pattern)
    rows: int = Field(0, ge=0)


class Manifest(Record):
    """What a stored folder holds, from what, and how it was computed; the fields after `files` are
    outside the fingerprint.
    """

    kind: str  # the dataset's noun, "models" or "sources"
    fingerprint: str
    schema_version: int
    rows: int = Field(ge=0)  # of a model: its parameters; of a source: its files
    files: list[StoredFile]
    parents: dict[str, AnyHandle] = {}  # every stored input, by its name in the spec
    # what else the same computation made: the model of a training, dropped rows
    outputs: dict[str, AnyHandle] = {}
    computed_by: dict[str, Any] = {}  # stage, code digest, spec
    numbers: dict[str, float] = {}  # two or three telling ones
    provenance: dict[str, Any] = {}  # git revision, packages, start, end, host, seconds
    digest: str = ""  # of all fields above, see `wind.store.sealed_json`; older releases wrote none

    def bytes(self) -> int:
        """Total size of the files, in bytes."""
        return sum(file.bytes for file in self.files)


def label(handle: AnyHandle) -> str:
    """How a handle is named in messages: its noun and twelve digits of its fingerprint."""
    return f"{noun(handle)}/{handle.fingerprint[:12]}"


def noun(handle: AnyHandle) -> str:
    """What a handle names: its dataset's noun, "models" or "sources"."""
    if isinstance(handle, Dataset):
        return handle.name
    return "models" if isinstance(handle, Model) else "sources"


def count(handle: AnyHandle) -> int:
    """What a handle counts: a dataset's rows, a model's weights, a source's files."""
    if isinstance(handle, Dataset):
        return handle.rows
    return handle.parameters if isinstance(handle, Model) else handle.files


def folder_of(handle: AnyHandle) -> str:
    """The name of the folder of `handle`, relative to the root."""
    above = noun(handle) if isinstance(handle, Model | Source) else f"datasets/{handle.name}"
    return f"{above}/{handle.fingerprint}"


def handle_of(name: str, fingerprint: str, rows: int) -> AnyHandle:
    """The handle with that noun, fingerprint and count."""
    if name == "models":
        return Model(fingerprint=fingerprint, parameters=rows)
    if name == "sources":
        return Source(fingerprint=fingerprint, files=rows)
    return Dataset(name=name, fingerprint=fingerprint, rows=rows)


def folder_fingerprint(files: Sequence[StoredFile]) -> str:
    """The fingerprint of a model or source: over the names and checksums of its files."""
    return digest(sorted([file.name, file.sha256] for file in files))
