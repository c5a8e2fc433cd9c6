"""The store: immutable, content-addressed datasets and models under one root.

A dataset is `<root>/datasets/<name>/<fingerprint>/`: Arrow IPC shards `part-00000.arrow ...` and
`manifest.json`. It is built under `<root>/partial/<name>/<key>/`, shard by shard, each shard
visible when it is whole, so that a restarted stage keeps what was finished. The manifest comes
last: in a folder everything appears under its fingerprint by one rename, on an object store the
shards are copied there and the manifest is a conditional put. Models are Hugging Face folders
published the same way under `<root>/models/<fingerprint>/`.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from wind.errors import DatasetError, InputError, StageError, first_line
from wind.fingerprints import ahead, file_digest, stream_digest
from wind.store import pins, schemas
from wind.store.handles import (
    FINGERPRINT,
    AnyHandle,
    Dataset,
    Manifest,
    Model,
    Source,
    StoredFile,
    count,
    folder_fingerprint,
    folder_of,
    handle_of,
    label,
    noun,
)
from wind.store.incoming import MANIFEST as MANIFEST  # here is where others look for them
from wind.store.incoming import MODEL_FILES as MODEL_FILES
from wind.store.incoming import WEIGHTS as WEIGHTS
from wind.store.incoming import copied, model_files, no_room, parameters, sizes, stored_file
from wind.store.roots import storage_for
from wind.store.sealed_json import opened, parsed, seal
from wind.store.shards import Content, check_order, mapped, shard_name, write_shard
from wind.store.stamps import is_ours, refuse, stamped
from wind.store.storage import Entry, Held, LocalStorage, Storage

if TYPE_CHECKING:  # half a second, which commands that look at versions alone do not need
    import polars as pl
    import pyarrow.dataset

DROPPED = "dropped.json"  # beside the manifest of a model whose weights a retention policy removed
CHECKPOINTS = "partial/training-checkpoints"  # relative to the root: a folder for each training
# in such a folder, where the last checkpoint of a finished training was kept: the model it made
FINISHED = "finished.json"

T = TypeVar("T")


class Store:
    """Datasets and models under one root, a folder or the URL of an object store.

    Everything above this class speaks in handles, and reaches other files through `storage`. Raises
    ConfigError for a URL that cannot be opened.
    """

    def __init__(self, root: Path | str, hold: str | None = None) -> None:
        self.storage: Storage = storage_for(os.fspath(root))
        self.hold = hold  # of the run that this process works for, see `wind.store.pins`
        self._marked: set[str] = set()

    @property
    def url(self) -> str:
        """The root as the user named it, for messages."""
        return self.storage.url

    @property
    def address(self) -> str:
        """The root for another process: an absolute path, or a URL."""
        return self.storage.address

    @property
    def local(self) -> Path:
        """A folder of this machine for what need not be shared: the root itself, or the cache of an
        object store.
        """
        return self.storage.local

    @property
    def root(self) -> Path:
        """The folder of a store that is one. Raises StageError for an object store."""
        if not isinstance(self.storage, LocalStorage):
            raise StageError(f"{self.url} is no folder of this machine")
        return self.storage.root

    def where(self, handle: AnyHandle) -> str:
        """Where `handle` lies, for messages."""
        return f"{self.url}/{folder_of(handle)}"

    def path(self, handle: AnyHandle) -> Path:
        """A folder of this machine with the files of `handle`.

        In a local store that is where it lies, whether or not it exists. From an object store the
        files are copied once, each checked, into this machine's cache: meant for models and
        sources, since datasets are read with `open`.
        """
        if isinstance(self.storage, LocalStorage):
            return self.storage.path(folder_of(handle))
        cached = Store(self.local)
        if not cached.is_whole(handle):
            with cached.storage.lock(f"{folder_of(handle)}.lock"):
                self._copy_to(cached, handle)
        return cached.path(handle)

    def manifest(self, handle: AnyHandle) -> Manifest:
        """The manifest of `handle`. Raises DatasetError if it is missing or not what the handle
        names.
        """
        path = f"{self.where(handle)}/{MANIFEST}"
        try:
            manifest = Manifest.model_validate(
                opened(self.storage.read(f"{folder_of(handle)}/{MANIFEST}"))
            )
        except FileNotFoundError:
            raise DatasetError(
                f"{label(handle)} is not in the store {self.url}: rerun the stage that makes it"
            ) from None
        except ValidationError as error:
            raise DatasetError(
                f"{path} is no manifest ({first_line(error)}): rerun the stage that makes it"
            ) from error
        except OSError as error:
            raise DatasetError(
                f"{path} cannot be read ({error.strerror or error}): rerun the stage that makes it"
            ) from error
        except ValueError as error:
            raise DatasetError(f"{path} {error}: rerun the stage that makes it") from error
        if manifest.fingerprint != handle.fingerprint:
            raise DatasetError(
                f"{path} names another fingerprint, {manifest.fingerprint[:12]}: it was edited or moved"
            )
        if manifest.kind != noun(handle) or count(handle) != manifest.rows:
            raise DatasetError(
                f"{path} is of {manifest.rows} in {manifest.kind}, not of {count(handle)} in {noun(handle)}: it was edited"
            )
        return manifest

    def is_whole(self, handle: AnyHandle, *, renew: bool = False) -> bool:
        """Whether the manifest of `handle` is there, every file as it was published, and so every
        output.

        The cheap check before a cache hit: a file of the recorded size that is not younger than the
        manifest, which was written after it, is taken for unchanged; a younger one is hashed. With
        `renew`, a manifest whose younger files are right, as in a copy of a store, is written
        again, so that they are not hashed the next time. An output whose weights a retention policy
        removed is taken for whole.
        """
        waiting, seen = [handle], {handle}
        while waiting:
            each = waiting.pop()
            try:
                files, stored = self.manifest(each).files, self._stored(each)
                if each != handle and isinstance(each, Model) and DROPPED in stored:
                    files = [file for file in files if not file.name.endswith(WEIGHTS)]
                if any(
                    file.name not in stored or stored[file.name].bytes != file.bytes
                    for file in files
                ):
                    return False
                younger = [
                    file for file in files if stored[file.name].modified > stored[MANIFEST].modified
                ]
                with self._fetched(
                    folder_of(each), [file.name for file in younger], file_digest
                ) as hashed:
                    if any(
                        file.sha256 != sha256
                        for file, (_, sha256) in zip(younger, hashed, strict=True)
                    ):
                        return False
                if younger and renew:
                    name = f"{folder_of(each)}/{MANIFEST}"
                    with contextlib.suppress(OSError):  # it is whole on a full disk, too
                        self.storage.write(name, self.storage.read(name))
                waiting += self._further_outputs(each, seen)
            except (DatasetError, OSError):
                return False
        return True

    def is_dropped(self, handle: AnyHandle) -> bool:
        """Whether a retention policy removed the weights of the model `handle`; its manifest and
        small files are there.
        """
        return (
            isinstance(handle, Model)
            and self.storage.size(f"{folder_of(handle)}/{DROPPED}") is not None
        )

    def dropped_models(self, handle: AnyHandle) -> Iterator[Model]:
        """The models among the outputs of `handle`, or of these, whose weights a retention policy
        removed.
        """
        waiting, seen = [handle], {handle}
        while waiting:
            for output in self._further_outputs(waiting.pop(), seen):
                if isinstance(output, Model) and self.is_dropped(output):
                    yield output
                elif isinstance(output, Dataset):
                    waiting.append(output)

    def _further_outputs(self, handle: AnyHandle, seen: set[AnyHandle]) -> list[AnyHandle]:
        """The outputs of `handle` that are not yet `seen`, and now are: a forged manifest may name
        itself.
        """
        further = [
            output
            for output in dict.fromkeys(self.manifest(handle).outputs.values())
            if output not in seen
        ]
        seen.update(further)
        return further

    def claim(self, handle: AnyHandle) -> bool:
        """Whether `handle` is whole; from now on garbage collection leaves it until the run ends
        whose hold this store has.
        """
        self._mark(handle)
        return self.is_whole(handle, renew=True)

    def _mark(self, handle: AnyHandle) -> None:
        if self.hold is not None and folder_of(handle) not in self._marked:
            with self.storage.lock(pins.COLLECTION_LOCK):
                pins.mark(self.storage, self.hold, folder_of(handle))
                self._marked.add(folder_of(handle))

    def verify(self, handle: AnyHandle) -> Manifest:
        """The manifest of `handle`, every checksum and the fingerprint recomputed. Raises
        DatasetError naming the file.
        """
        manifest = self.manifest(handle)
        sizes = {name: entry.bytes for name, entry in self._stored(handle).items()}
        by_policy = WEIGHTS if self.is_dropped(handle) else ()
        files = [
            file
            for file in manifest.files
            if file.name in sizes or not file.name.endswith(by_policy)
        ]
        for file in files:
            path = f"{self.where(handle)}/{file.name}"
            if file.name not in sizes:
                raise DatasetError(f"{path} is missing")
            if sizes[file.name] != file.bytes:
                raise DatasetError(
                    f"{path} has {sizes[file.name]} bytes, its manifest says {file.bytes}"
                )
        content, found = self._examine(handle, files)
        fingerprint = (
            content.hexdigest()
            if isinstance(handle, Dataset)
            else folder_fingerprint(manifest.files)
        )
        if fingerprint != handle.fingerprint:
            raise DatasetError(
                f"{self.where(handle)} has content {fingerprint[:12]}, not the {handle.fingerprint[:12]} it is named for"
            )
        if found != files or (
            isinstance(handle, Dataset) and sum(file.rows for file in found) != manifest.rows
        ):
            raise DatasetError(
                f"{self.where(handle)}/{MANIFEST} counts other rows than its shards hold: it was edited"
            )
        return manifest

    def open(self, handle: Dataset, shard: int | None = None) -> "pyarrow.dataset.Dataset":
        """The shards of `handle`, or only shard number `shard`, as a pyarrow dataset in row order."""
        import pyarrow.dataset

        manifest = self.manifest(handle)
        stored = manifest.files if shard is None else manifest.files[shard : shard + 1]
        files = [f"{folder_of(handle)}/{file.name}" for file in stored]
        rows = pyarrow.dataset.dataset(files, filesystem=self.storage.filesystem(), format="ipc")
        if manifest.schema_version == schemas.VERSION:
            return rows
        return rows.replace_schema(
            schemas.evolved(handle.name, rows.schema, manifest.schema_version)
        )

    def read(
        self, handle: Dataset, columns: Sequence[str] | None = None, shard: int | None = None
    ) -> pa.Table:
        """The rows of `handle`, or of one shard, as a table. Raises DatasetError if a shard cannot
        be read.
        """
        try:
            table = self.open(handle, shard).to_table(columns=list(columns) if columns else None)
            table.validate(full=True)  # whoever follows an offset that points elsewhere is killed
            return table
        except DatasetError:
            raise
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DatasetError(
                f"{label(handle)} cannot be read: {first_line(error)}; run `wind verify`"
            ) from error

    def frame(
        self, handle: Dataset, columns: Sequence[str] | None = None, shard: int | None = None
    ) -> "pl.DataFrame":
        """The rows of `handle`, or of one shard, as a polars frame."""
        import polars as pl

        frame = pl.from_arrow(self.read(handle, columns, shard))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def handles(self, name: str) -> Iterator[AnyHandle]:
        """Everything published under the noun `name`, in order of fingerprint."""
        folder = name if name in ("models", "sources") else f"datasets/{name}"
        for fingerprint in self.storage.names(folder):
            if not FINGERPRINT.fullmatch(fingerprint):
                continue
            path = f"{folder}/{fingerprint}/{MANIFEST}"
            try:
                handle = handle_of(name, fingerprint, parsed(self.storage.read(path))["rows"])
            except FileNotFoundError:
                continue  # not published, or removed
            except (ValueError, KeyError, OSError) as error:
                raise DatasetError(
                    f"{self.url}/{path} is no manifest ({first_line(error)}): rerun what makes it"
                ) from error
            yield handle

    @contextlib.contextmanager
    def partial(self, name: str, key: str) -> Iterator["Partial"]:
        """The unfinished dataset of one stage key, locked against every other process that computes
        the same.
        """
        folder = f"partial/{name}/{key}"
        with self.storage.lock(f"{folder}.lock") as held:
            yield Partial(self, name, folder, held)

    def open_partial(self, name: str, key: str) -> "Partial":
        """The unfinished dataset of one stage key, for a worker whose parent process holds its lock
        and publishes.
        """
        return Partial(self, name, f"partial/{name}/{key}", None)

    def publish_model(self, folder: Path, **facts: Any) -> Model:
        """Publish a finished Hugging Face folder, which is moved; `facts` are further fields of its
        manifest.
        """
        paths = model_files(folder)
        for path in paths:  # safetensors writes files for their owner alone, whatever the umask
            path.chmod(folder.stat().st_mode & 0o666)
        files = [stored_file(path, folder) for path in paths]
        model = Model(fingerprint=folder_fingerprint(files), parameters=parameters(paths))
        self._publish_folder(folder, model, model.parameters, files, facts)
        return model

    def import_model(self, folder: Path, **facts: Any) -> Model:
        """Copy a Hugging Face folder into the store, unless the same content is there. Weights as
        safetensors only.

        Raises NotPlainError for a file that is none or leads out of the folder, StageError if there
        is no room for a copy.
        """
        paths = model_files(folder)
        self._require_room("models", paths, folder)
        files = [stored_file(path, folder) for path in paths]
        model = Model(fingerprint=folder_fingerprint(files), parameters=parameters(paths))
        if not self.claim(model):
            self._publish_folder(
                copied(self.scratch("models"), paths, files, folder),
                model,
                model.parameters,
                files,
                facts,
            )
        return model

    def import_source(
        self, paths: Sequence[Path], within: Path | None = None, **facts: Any
    ) -> Source:
        """Copy input files into the store under their own names, unless the same content is there.

        They are those of the folder `within`, or were named one by one. Raises InputError for a
        name that the store needs for itself or cannot keep, NotPlainError and StageError as
        `import_model` does.
        """
        paths = sorted(paths)
        for path in paths:
            if path.name == MANIFEST:
                raise InputError(
                    f"a source cannot be called {MANIFEST}, as the store's own record of it is: rename it"
                )
            if not path.name.isprintable():
                raise InputError(
                    f"a source cannot be called {path.name!r}: rename it without control characters"
                )
        self._require_room("sources", paths, within)
        files = [stored_file(path, within) for path in paths]
        source = Source(fingerprint=folder_fingerprint(files), files=len(files))
        if not self.claim(source):
            self._publish_folder(
                copied(self.scratch("sources"), paths, files, within),
                source,
                source.files,
                files,
                facts,
            )
        return source

    def adopt(self, folder: Path, handle: AnyHandle, manifest: Manifest) -> None:
        """Publish a verified folder from another store under the handle and manifest it has there;
        it is moved.

        Nothing changes if the same content is here already.
        """
        self._publish(folder, handle, manifest, (folder / MANIFEST).read_bytes())

    def scratch(self, name: str) -> Path:
        """A new empty folder of this machine, for building what `publish_model` then moves into the
        store.
        """
        folder = self.local / "partial" / name / f"scratch-{os.getpid()}-{secrets.token_hex(8)}"
        # unlike tempfile's, readable to whom the umask lets read it: it will be in the store
        folder.mkdir(parents=True)
        return folder

    def _require_room(self, name: str, paths: Sequence[Path], within: Path | None) -> None:
        """Raise StageError if a copy of `paths` has no room on this machine and is not stored yet,
        as far as sizes tell.
        """
        if (missing := no_room(paths, self.local, within)) is None:
            return
        known = sizes(paths, within)
        manifests = (self.manifest(handle) for handle in self.handles(name))
        if not any(
            {file.name: file.bytes for file in manifest.files} == known for manifest in manifests
        ):
            raise StageError(missing)

    def _publish_folder(
        self,
        folder: Path,
        handle: Model | Source,
        rows: int,
        files: list[StoredFile],
        facts: Mapping[str, Any],
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

    def _copy_to(self, cached: "Store", handle: AnyHandle) -> None:
        """Copy the files of `handle` into a store on this machine, each when its checksum is right,
        the manifest last.
        """
        manifest = self.manifest(handle)
        folder = folder_of(handle)
        for file in manifest.files:
            if cached.storage.size(f"{folder}/{file.name}") == file.bytes:
                continue  # checked when it was copied
            with cached.storage.building(f"{folder}/{file.name}") as path:
                hasher = hashlib.sha256()
                with path.open("wb") as copy:
                    for chunk in self.storage.chunks(f"{folder}/{file.name}"):
                        hasher.update(chunk)
                        copy.write(chunk)
                self._check_sha256(handle, file, hasher.hexdigest())
        cached.storage.write(f"{folder}/{MANIFEST}", self.storage.read(f"{folder}/{MANIFEST}"))

    def _stored(self, handle: AnyHandle) -> dict[str, Entry]:
        """What is there of `handle`, by name."""
        folder = folder_of(handle)
        return {
            entry.name.removeprefix(f"{folder}/"): entry for entry in self.storage.files(folder)
        }

    def _check_sha256(self, handle: AnyHandle, file: StoredFile, sha256: str) -> None:
        if sha256 != file.sha256:
            path = f"{self.where(handle)}/{file.name}"
            raise DatasetError(
                f"{path} does not have the sha256 of its manifest: its content was changed"
            )

    def _examine(
        self, handle: AnyHandle, files: Sequence[StoredFile]
    ) -> tuple[Content, list[StoredFile]]:
        """The content of the stored `files`, and what a manifest must say of each; no file is
        parsed before its checksum.
        """
        declaration = schemas.find_declaration(noun(handle))
        content, found = Content(() if declaration is None else declaration.key), []
        with self._fetched(
            folder_of(handle), [file.name for file in files], file_digest
        ) as fetched:
            for file, (path, sha256) in zip(files, fetched, strict=True):
                self._check_sha256(handle, file, sha256)
                is_shard = isinstance(handle, Dataset)
                rows = (
                    content.add(path, f"{self.where(handle)}/{file.name}")
                    if is_shard
                    else file.rows
                )
                found.append(
                    StoredFile(name=file.name, bytes=path.stat().st_size, sha256=sha256, rows=rows)
                )
        return content, found

    @contextlib.contextmanager
    def _fetched(
        self, folder: str, names: Sequence[str], look: Callable[[Path], T]
    ) -> Iterator[Iterator[tuple[Path, T]]]:
        """For each name a file of this machine with its content, until the next is asked for, and
        what `look` sees in it.
        """
        held: deque[contextlib.ExitStack] = deque()

        def fetch(name: str) -> tuple[Path, T]:
            try:
                with contextlib.ExitStack() as stack:
                    path = stack.enter_context(self.storage.fetched(f"{folder}/{name}"))
                    seen = look(path)
                    held.append(stack.pop_all())
                    return path, seen
            except OSError as error:
                raise DatasetError(
                    f"{self.url}/{folder}/{name} cannot be read: {first_line(error)}"
                ) from error

        def each(fetched: Iterator[tuple[Path, T]]) -> Iterator[tuple[Path, T]]:
            for path, seen in fetched:
                yield path, seen
                held.popleft().close()

        try:
            with ahead(fetch, names) as fetched:
                yield each(fetched)
        finally:
            for stack in held:
                stack.close()

    def _publish(
        self,
        source: str | Path,
        handle: AnyHandle,
        manifest: Manifest,
        written: bytes | None = None,
    ) -> None:
        """Let what was built in `source` appear under its fingerprint, the manifest last; a damaged
        one is replaced.

        The manifest is sealed now, unless it was `written` before.
        """
        content = written or seal(manifest)
        self._mark(handle)
        target = folder_of(handle)
        with self.storage.lock(f"{target}.lock") as held:
            if self.is_whole(handle):
                shutil.rmtree(source) if isinstance(source, Path) else self.storage.delete(source)
                return
            if self.storage.names(target):
                # first: what is half removed must not look whole
                self.storage.delete(f"{target}/{MANIFEST}")
                self.storage.delete(target)
            names = [file.name for file in manifest.files]
            self.storage.publish(source, target, names, MANIFEST, content, held)
        if isinstance(source, Path) and source.exists():  # copied, not moved
            shutil.rmtree(source)


class Partial:
    """An unfinished dataset: finished shards, and the way to publish them."""

    def __init__(self, store: Store, name: str, folder: str, held: Held | None) -> None:
        self._store = store
        self._name = name
        self._held = held
        self.folder = folder  # its name in the storage

    def missing(self, shards: int) -> list[int]:
        """Which of shards 0..`shards`-1 are not there as they were written, with what was kept
        beside them.
        """
        stored = {
            entry.name.rpartition("/")[2]: entry for entry in self._store.storage.files(self.folder)
        }
        return [index for index in range(shards) if not self._is_finished(index, stored)]

    def _is_finished(self, index: int, stored: Mapping[str, Entry]) -> bool:
        """Whether shard `index` is there and unchanged: what is kept beside it was written after
        it.
        """
        shard, beside = stored.get(shard_name(index)), stored.get(_name_beside(index))
        if shard is None or beside is None or shard.modified > beside.modified:
            return False
        with contextlib.suppress(DatasetError):
            return self._kept(index)[0].bytes == shard.bytes
        return False

    def beside(self, index: int) -> dict[str, Any]:
        """What was kept beside shard `index`. Raises DatasetError if it is not what was written."""
        return self._kept(index)[1]

    def _kept(self, index: int) -> tuple[StoredFile, dict[str, Any]]:
        """What the manifest will say of shard `index`, and what else was kept beside it."""
        name = f"{self.folder}/{_name_beside(index)}"
        try:
            kept = opened(self._store.storage.read(name))
            if not is_ours("shard", kept) or kept["folder"] != self.folder:
                refuse(self._store.address, name)
                raise ValueError("was not written by us")
            return StoredFile.model_validate(kept.pop("file")), kept
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"{self._store.url}/{name} {first_line(error)}: rerun") from error

    def write(
        self,
        index: int,
        table: pa.Table,
        schema: pa.Schema | None = None,
        *,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit shard `index`, cast to the declared schema; it counts as finished once `beside` is
        kept, until it is published.

        Raises DatasetError if a column does not fit, or the rows are not in order of their key.
        """
        declaration = schemas.declared(self._name)
        table = schemas.conform(table, schema or declaration.schema)
        name, key = shard_name(index), declaration.key
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            checked = pool.submit(check_order, table, key)
            with self._store.storage.building(f"{self.folder}/{name}") as path:
                write_shard(path, table)
                written = stack.enter_context(path.open("rb"))
                size = path.stat().st_size
                checked.result()
                # while the file is synced, or copied to an object store
                sha256 = pool.submit(stream_digest, written)
            file = StoredFile(name=name, bytes=size, sha256=sha256.result(), rows=table.num_rows)
        kept = {"file": file.model_dump(), **(beside or {}), "folder": self.folder}
        self._store.storage.write(f"{self.folder}/{_name_beside(index)}", stamped("shard", kept))

    def table(self, shards: int) -> pa.Table:
        """The rows of the finished shards 0..`shards`-1, mapped: what is not looked at takes no
        memory.
        """
        tables = []
        for index in range(shards):
            with self._store.storage.fetched(f"{self.folder}/{shard_name(index)}") as path:
                tables.append(pa.Table.from_batches(*mapped(path)))
        return pa.concat_tables(tables)

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
        """The handle of the finished dataset, now visible under its fingerprint. All of shards
        0..`shards`-1 must be there.

        Raises StageError if the lock was lost to another process.
        """
        content, files = (
            Content(schemas.declared(self._name).key),
            [self._kept(index)[0] for index in range(shards)],
        )
        with self._store._fetched(
            self.folder, [file.name for file in files], os.path.getsize
        ) as fetched:
            for file, (path, size) in zip(files, fetched, strict=True):
                where = f"{self._store.url}/{self.folder}/{file.name}"
                if (size, content.add(path, where, is_trusted=True)) != (file.bytes, file.rows):
                    raise DatasetError(f"{where} is not as it was written: rerun")
        fingerprint, total = content.hexdigest(), sum(content.rows)
        if self._held is not None:
            self._held.check()
        manifest = Manifest(
            kind=self._name,
            fingerprint=fingerprint,
            schema_version=schemas.VERSION,
            rows=total,
            files=files,
            parents=dict(parents),
            outputs=dict(outputs or {}),
            computed_by=dict(computed_by),
            numbers=dict(numbers),
            provenance=dict(provenance),
        )
        handle = Dataset(name=self._name, fingerprint=fingerprint, rows=total)
        self._store._publish(self.folder, handle, manifest)
        return handle


def _name_beside(index: int) -> str:
    return f"outputs-{index:05d}.json"
