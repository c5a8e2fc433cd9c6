"""The store: immutable, content-addressed datasets and models under one root, and the handles that name them.

A dataset is `<root>/datasets/<name>/<fingerprint>/`: Arrow IPC shards `part-00000.arrow ...` and `manifest.json`. It is built
under `<root>/partial/<name>/<key>/`, shard by shard, each shard written to a temporary name, synced and renamed, so that a
restarted stage keeps what was finished; the manifest is written last and the folder appears under its fingerprint by one rename.
Models are Hugging Face folders published the same way under `<root>/models/<fingerprint>/`.
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset
from pydantic import BaseModel, ConfigDict, Field

from wind import schemas
from wind.errors import DatasetError
from wind.files import atomic, atomic_write, lock, sync_folder
from wind.fingerprints import TableFingerprint, digest, file_digest
from wind.storage import LocalStorage, Storage

MANIFEST = "manifest.json"
FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")
MODEL_FILES = re.compile(r"^(.*\.(json|jinja|txt|model)|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors)$")


class Handle(BaseModel):
    """A frozen record that names stored content; the only thing tasks pass to one another."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class StoredFile(Handle):
    """One file of a dataset or model."""

    name: str
    bytes: int
    sha256: str
    rows: int = 0


class Manifest(BaseModel):
    """What a stored folder holds, from what, and how it was computed; the last five fields are outside the fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str  # the dataset's noun, "models" or "sources"
    fingerprint: str
    schema_version: int
    rows: int  # of a model: its parameters; of a source: its files
    files: list[StoredFile]
    parents: dict[str, AnyHandle] = {}  # every stored input, by its name in the spec
    outputs: dict[str, AnyHandle] = {}  # what else the same computation made: the model of a training, dropped rows
    computed_by: dict[str, Any] = {}  # stage, code digest, spec
    numbers: dict[str, float] = {}  # two or three telling ones
    provenance: dict[str, Any] = {}  # git revision, packages, start, end, host, seconds

    def bytes(self) -> int:
        """Total size of the files, in bytes."""
        return sum(file.bytes for file in self.files)


class Store:
    """Datasets and models under a local root.

    Everything above this class speaks in handles; only `path` knows folders, so that an object store can
    stand behind the same methods.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.storage: Storage = LocalStorage(self.root)

    def path(self, handle: AnyHandle) -> Path:
        """The folder of `handle`, whether or not it exists."""
        if isinstance(handle, Model | Source):
            return self.root / noun(handle) / handle.fingerprint
        return self.root / "datasets" / handle.name / handle.fingerprint

    def manifest(self, handle: AnyHandle) -> Manifest:
        """The manifest of `handle`. Raises DatasetError if it is missing or not what the handle names."""
        path = self.path(handle) / MANIFEST
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DatasetError(f"{label(handle)} is not in the store {self.root}: rerun the stage that makes it") from None
        except (ValueError, OSError) as error:
            raise DatasetError(f"{path} cannot be read ({_first_line(error)}): rerun the stage that makes it") from error
        if manifest.fingerprint != handle.fingerprint:
            raise DatasetError(f"{path} names another fingerprint, {manifest.fingerprint[:12]}: it was edited or moved")
        return manifest

    def is_whole(self, handle: AnyHandle) -> bool:
        """Whether the manifest of `handle` is there, every file has its recorded size, and so has every output.

        The cheap check before a cache hit.
        """
        try:
            manifest = self.manifest(handle)
            folder = self.path(handle)
            sizes = all((folder / file.name).stat().st_size == file.bytes for file in manifest.files)
        except (DatasetError, OSError):
            return False
        return sizes and all(self.is_whole(output) for output in manifest.outputs.values())

    def verify(self, handle: AnyHandle) -> Manifest:
        """The manifest of `handle`, every checksum and the fingerprint recomputed. Raises DatasetError naming the file."""
        manifest = self.manifest(handle)
        folder = self.path(handle)
        for file in manifest.files:
            path = folder / file.name
            if not path.is_file():
                raise DatasetError(f"{path} is missing")
            if path.stat().st_size != file.bytes:
                raise DatasetError(f"{path} has {path.stat().st_size} bytes, its manifest says {file.bytes}")
            if file_digest(path) != file.sha256:
                raise DatasetError(f"{path} does not have the sha256 of its manifest: its content was changed")
        rows = [file.rows for file in manifest.files]
        if isinstance(handle, Model | Source):
            fingerprint = folder_fingerprint(manifest.files)
        else:
            fingerprint, rows = self._fingerprint(folder, [file.name for file in manifest.files])
        if fingerprint != handle.fingerprint:
            raise DatasetError(f"{folder} has content {fingerprint[:12]}, not the {handle.fingerprint[:12]} it is named for")
        if rows != [file.rows for file in manifest.files] or (isinstance(handle, Dataset) and sum(rows) != manifest.rows):
            raise DatasetError(f"{folder / MANIFEST} counts other rows than its shards hold: it was edited")
        return manifest

    def open(self, handle: Dataset, shard: int | None = None) -> pyarrow.dataset.Dataset:
        """The shards of `handle`, or only shard number `shard`, as a pyarrow dataset in row order."""
        stored = self.manifest(handle).files
        files = [str(self.path(handle) / file.name) for file in (stored if shard is None else stored[shard : shard + 1])]
        return pyarrow.dataset.dataset(files, format="ipc")

    def read(self, handle: Dataset, columns: Sequence[str] | None = None, shard: int | None = None) -> pa.Table:
        """The rows of `handle`, or of one shard, as a table. Raises DatasetError if a shard cannot be read."""
        try:
            return self.open(handle, shard).to_table(columns=list(columns) if columns else None)
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(f"{label(handle)} cannot be read: {_first_line(error)}; run `wind verify`") from error

    def frame(self, handle: Dataset, columns: Sequence[str] | None = None, shard: int | None = None) -> pl.DataFrame:
        """The rows of `handle`, or of one shard, as a polars frame."""
        frame = pl.from_arrow(self.read(handle, columns, shard))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def handles(self, name: str) -> Iterator[AnyHandle]:
        """Everything published under the noun `name`, in order of fingerprint."""
        folder = self.root / name if name in ("models", "sources") else self.root / "datasets" / name
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if FINGERPRINT.match(path.name) and (path / MANIFEST).is_file():
                yield handle_of(name, path.name, json.loads((path / MANIFEST).read_bytes())["rows"])

    @contextlib.contextmanager
    def partial(self, name: str, key: str) -> Iterator["Partial"]:
        """The unfinished dataset of one stage key, locked against every other process that computes the same."""
        folder = self.root / "partial" / name / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        name_of_lock = folder.with_name(f"{key}.lock")
        with lock(name_of_lock):
            folder.mkdir(exist_ok=True)
            yield Partial(self, name, folder)
            name_of_lock.unlink(missing_ok=True)

    def open_partial(self, name: str, key: str) -> "Partial":
        """The unfinished dataset of one stage key, for a worker whose parent process holds its lock."""
        return Partial(self, name, self.root / "partial" / name / key)

    def publish_model(self, folder: Path, **facts: Any) -> Model:
        """Publish a finished Hugging Face folder, which is moved; `facts` are further fields of its manifest."""
        files = [_stored(path) for path in _model_files(folder)]
        model = Model(fingerprint=folder_fingerprint(files), parameters=_parameters(_model_files(folder)))
        self._publish_folder(folder, model, model.parameters, files, facts)
        return model

    def import_model(self, folder: Path, **facts: Any) -> Model:
        """Copy a Hugging Face folder into the store, unless the same content is there. Weights as safetensors only."""
        paths = _model_files(folder)
        files = [_stored(path) for path in paths]
        model = Model(fingerprint=folder_fingerprint(files), parameters=_parameters(paths))
        if not self.is_whole(model):
            self._publish_folder(self._copy("models", paths), model, model.parameters, files, facts)
        return model

    def import_source(self, paths: Sequence[Path], **facts: Any) -> Source:
        """Copy input files into the store under their own names, unless the same content is there."""
        files = [_stored(path) for path in sorted(paths)]
        source = Source(fingerprint=folder_fingerprint(files), files=len(files))
        if not self.is_whole(source):
            self._publish_folder(self._copy("sources", paths), source, source.files, files, facts)
        return source

    def scratch(self, name: str) -> Path:
        """A new empty folder on the same file system as the store, for building what `publish_model` then moves."""
        folder = self.root / "partial" / name
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="scratch-", dir=folder))

    def _copy(self, name: str, paths: Sequence[Path]) -> Path:
        scratch = self.scratch(name)
        for path in paths:
            shutil.copyfile(path, scratch / path.name)
        return scratch

    def _publish_folder(
        self, folder: Path, handle: Model | Source, rows: int, files: list[StoredFile], facts: Mapping[str, Any]
    ) -> None:
        manifest = Manifest(
            kind=noun(handle),
            fingerprint=handle.fingerprint,
            schema_version=schemas.VERSION,
            rows=rows,
            files=files,
            **facts,
        )
        self._publish(folder, handle, manifest)

    def _fingerprint(self, folder: Path, names: Sequence[str]) -> tuple[str, list[int]]:
        """The fingerprint of the shards `names`, and each shard's rows."""
        fingerprint: TableFingerprint | None = None
        rows = []
        for name in names:
            try:
                with pa.memory_map(str(folder / name)) as source, pa.ipc.open_file(source) as reader:
                    fingerprint = fingerprint or TableFingerprint(reader.schema)
                    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
                    fingerprint.update(batches)
                    rows.append(sum(batch.num_rows for batch in batches))
            except (pa.ArrowInvalid, OSError) as error:
                raise DatasetError(f"{folder / name} cannot be read: {_first_line(error)}") from error
        assert fingerprint is not None, "a dataset has at least one shard"
        return fingerprint.hexdigest(), rows

    def _publish(self, folder: Path, handle: AnyHandle, manifest: Manifest) -> None:
        """Write the manifest last, then let the folder appear under its fingerprint by one rename; a damaged one is replaced."""
        target = self.path(handle)
        atomic_write(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.with_name(f"{target.name}.lock")):
            if self.is_whole(handle):
                shutil.rmtree(folder)
            else:
                if target.exists():
                    shutil.rmtree(target)
                os.rename(folder, target)
                sync_folder(target.parent)
        target.with_name(f"{target.name}.lock").unlink(missing_ok=True)


class Partial:
    """An unfinished dataset: finished shards, and the way to publish them."""

    def __init__(self, store: Store, name: str, folder: Path) -> None:
        self._store = store
        self._name = name
        self.folder = folder

    def has(self, index: int) -> bool:
        """Whether shard `index` was finished before."""
        return (self.folder / shard_name(index)).is_file()

    def write(self, index: int, table: pa.Table, schema: pa.Schema | None = None) -> None:
        """Commit shard `index`, cast to the declared schema. Raises DatasetError if a column does not fit it."""
        table = schemas.conform(table, schema or schemas.SCHEMAS[self._name])
        with (
            atomic(self.folder / shard_name(index)) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def table(self, shards: int) -> pa.Table:
        """The rows of the finished shards 0..`shards`-1."""
        files = [str(self.folder / shard_name(index)) for index in range(shards)]
        return pyarrow.dataset.dataset(files, format="ipc").to_table()

    def publish(
        self,
        shards: int,
        *,
        parents: Mapping[str, AnyHandle],
        outputs: Mapping[str, AnyHandle] | None = None,
        computed_by: Mapping[str, Any],
        numbers: Mapping[str, float],
        provenance: Mapping[str, Any],
    ) -> Dataset:
        """The handle of the finished dataset, now visible under its fingerprint. All of shards 0..`shards`-1 must be there."""
        names = [shard_name(index) for index in range(shards)]
        fingerprint, rows = self._store._fingerprint(self.folder, names)
        files = [_stored(self.folder / name, count) for name, count in zip(names, rows, strict=True)]
        manifest = Manifest(
            kind=self._name,
            fingerprint=fingerprint,
            schema_version=schemas.VERSION,
            rows=sum(rows),
            files=files,
            parents=dict(parents),
            outputs=dict(outputs or {}),
            computed_by=dict(computed_by),
            numbers=dict(numbers),
            provenance=dict(provenance),
        )
        handle = Dataset(name=self._name, fingerprint=fingerprint, rows=sum(rows))
        # Last of all: what stands beside the shards is needed by a rerun for as long as the dataset is not published.
        for stray in sorted(self.folder.iterdir()):
            if stray.name not in names:
                stray.unlink()
        self._store._publish(self.folder, handle, manifest)
        return handle


def shard_name(index: int) -> str:
    """The file name of shard `index`."""
    return f"part-{index:05d}.arrow"


def label(handle: AnyHandle) -> str:
    """How a handle is named in messages: its noun and twelve digits of its fingerprint."""
    return f"{noun(handle)}/{handle.fingerprint[:12]}"


def noun(handle: AnyHandle) -> str:
    """What a handle names: its dataset's noun, "models" or "sources"."""
    if isinstance(handle, Dataset):
        return handle.name
    return "models" if isinstance(handle, Model) else "sources"


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


def _stored(path: Path, rows: int = 0) -> StoredFile:
    return StoredFile(name=path.name, bytes=path.stat().st_size, sha256=file_digest(path), rows=rows)


def _model_files(folder: Path) -> list[Path]:
    """The files that make up a Hugging Face model: config, tokenizer, templates and safetensors, nothing else."""
    return [path for path in sorted(folder.iterdir()) if MODEL_FILES.match(path.name) and path.name != MANIFEST]


def _parameters(paths: Sequence[Path]) -> int:
    """The number of stored weights, read from the safetensors headers alone."""
    total = 0
    for path in paths:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
