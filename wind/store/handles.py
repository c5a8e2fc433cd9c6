"""Handles, which name stored content, and manifests, which describe it."""

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field, TypeAdapter

from wind.fingerprints import digest
from wind.records import Record

FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")
# No slash, no name that leads out of its folder, and no control characters, line ends included.
PLAIN_NAME = r"^([^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*|\.[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)$"


class Handle(Record):
    """A frozen record that names stored content; all that tasks exchange."""


class Dataset(Handle):
    """The name of a dataset: noun, fingerprint of its content, row count."""

    name: str = Field(pattern=r"^[a-z_]+(\.[a-z_]+)?$")
    fingerprint: str = Field(pattern=FINGERPRINT.pattern)
    rows: int = Field(ge=0)


class Model(Handle):
    """The name of a stored Hugging Face model folder."""

    fingerprint: str = Field(pattern=FINGERPRINT.pattern)
    parameters: int = Field(ge=0)


class Source(Handle):
    """The name of stored input files, from which prompts are read."""

    fingerprint: str = Field(pattern=FINGERPRINT.pattern)
    files: int = Field(ge=1)


AnyHandle = Dataset | Model | Source
HANDLE: Final[TypeAdapter[AnyHandle]] = TypeAdapter(AnyHandle)


class StoredFile(Handle):
    """One file of a dataset or model, named within its folder."""

    name: str = Field(pattern=PLAIN_NAME, max_length=255)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=FINGERPRINT.pattern)
    rows: int = Field(0, ge=0)


class Manifest(Record):
    """The description of a stored folder: its files, ancestry and computation.

    The fields after `files` are outside the fingerprint.
    """

    kind: str  # the dataset's noun, "models" or "sources"
    fingerprint: str
    schema_version: int
    rows: int = Field(ge=0)  # of a model: its parameters; of a source: its files
    files: list[StoredFile]
    parents: dict[str, AnyHandle] = {}  # every stored input, by its name in the spec
    # other results of the same computation: the model of a training, dropped rows
    outputs: dict[str, AnyHandle] = {}
    computed_by: dict[str, Any] = {}  # stage, code digest, spec
    numbers: dict[str, float] = {}  # two or three summary statistics
    provenance: dict[str, Any] = {}  # git revision, packages, start, end, host, seconds
    # of all fields above, see `wind.store.sealed_json`; older releases wrote none
    digest: str = ""

    def bytes(self) -> int:
        """Return the total size of the files in bytes."""
        return sum(file.bytes for file in self.files)


def label(handle: AnyHandle) -> str:
    """Return a handle's name in messages: its noun and twelve digits."""
    return f"{noun(handle)}/{handle.fingerprint[:12]}"


def noun(handle: AnyHandle) -> str:
    """Return a handle's noun: that of its dataset, "models" or "sources"."""
    if isinstance(handle, Dataset):
        return handle.name
    return "models" if isinstance(handle, Model) else "sources"


def count(handle: AnyHandle) -> int:
    """Return the number of rows, weights or files in a handle.

    A dataset counts rows, a model weights, a source files.
    """
    if isinstance(handle, Dataset):
        return handle.rows
    return handle.parameters if isinstance(handle, Model) else handle.files


def folder_of(handle: AnyHandle) -> str:
    """Return the folder of `handle`, relative to the root."""
    above = noun(handle) if isinstance(handle, Model | Source) else f"datasets/{handle.name}"
    return f"{above}/{handle.fingerprint}"


def handle_of(name: str, fingerprint: str, rows: int) -> AnyHandle:
    """Return the handle with this noun, fingerprint and count."""
    if name == "models":
        return Model(fingerprint=fingerprint, parameters=rows)
    if name == "sources":
        return Source(fingerprint=fingerprint, files=rows)
    return Dataset(name=name, fingerprint=fingerprint, rows=rows)


def folder_fingerprint(files: Sequence[StoredFile]) -> str:
    """Return the fingerprint of a model or source from its `files`.

    It covers their names and checksums.
    """
    return digest(sorted([file.name, file.sha256] for file in files))
