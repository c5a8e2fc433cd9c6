"""The store: immutable, content-addressed datasets and models under one root.

A dataset is `<root>/datasets/<name>/<fingerprint>/`: Arrow IPC shards `part-00000.arrow ...` and
`manifest.json`. It is built shard by shard under `<root>/partial/<name>/<key>/`. Each shard appears
there only when it is complete, so that a restarted stage keeps what was finished. The manifest
comes last: in a folder everything appears under its fingerprint by one rename; on an object store
the shards are copied there and the manifest is a conditional put. Models are Hugging Face folders
published the same way under `<root>/models/<fingerprint>/`.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wind.errors import DatasetError, StageError, first_line
from wind.store import pins, published, schemas, sealed_json
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
from wind.store.incoming import model_files, parameters, stored_file
from wind.store.layout import MANIFEST
from wind.store.local_copies import local_copy
from wind.store.partial import Partial
from wind.store.published import Published
from wind.store.roots import storage_for
from wind.store.storage import LocalStorage, Storage

if TYPE_CHECKING:  # half a second, which commands that look at versions alone do not need
    import polars as pl
    import pyarrow.dataset


class Store:
    """Datasets and models under one root.

    Callers name content by handles, and reach other files through `storage`.

    Args:
        root: a folder, or the URL of an object store. Raises ConfigError for a URL that cannot be
            opened.
        pin_set: where to pin what is found or published, see `wind.store.pins`; None for no pins.
    """

    def __init__(self, root: Path | str, pin_set: str | None = None) -> None:
        self.storage: Storage = storage_for(os.fspath(root))
        self.pin_set = pin_set
        self._pinned: set[str] = set()

    # ---------------------------------------------------------------------------------- addresses

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
        """The folder of this machine for what need not be shared.

        It is the root itself, or the cache of an object store.
        """
        return self.storage.local

    @property
    def root(self) -> Path:
        """The folder of a local store. Raises StageError for an object store."""
        if not isinstance(self.storage, LocalStorage):
            raise StageError(f"{self.url} is no folder of this machine")
        return self.storage.root

    def where(self, handle: AnyHandle) -> str:
        """Return the address of `handle`, for messages."""
        return Published(self.storage, handle).where

    def path(self, handle: AnyHandle) -> Path:
        """Return a folder of this machine with the files of `handle`.

        In a local store that is where it is stored, present or not. From an object store the files
        are copied once, each checked, into this machine's cache. This is meant for models and
        sources: read datasets with `open`.
        """
        if isinstance(self.storage, LocalStorage):
            return self.storage.path(folder_of(handle))
        return local_copy(self.storage, handle)

    # ------------------------------------------------------------------------------------- checks

    def manifest(self, handle: AnyHandle) -> Manifest:
        """Read the manifest of `handle`.

        Raises DatasetError if it is missing, or does not describe what the handle names.
        """
        return Published(self.storage, handle).manifest()

    def is_whole(self, handle: AnyHandle) -> bool:
        """Return whether `handle` and its outputs look as published, see `published.is_whole`."""
        return published.is_whole(self.storage, handle)

    def pin_if_whole(self, handle: AnyHandle) -> bool:
        """Pin `handle` in this store's pin set; return whether it is whole."""
        self._pin(handle)
        return published.is_whole(self.storage, handle, renew=True)

    def is_dropped(self, handle: AnyHandle) -> bool:
        """Return whether a retention policy removed the weights of the model `handle`.

        Its manifest and small files are still there.
        """
        return Published(self.storage, handle).is_dropped()

    def dropped_models(self, handle: AnyHandle) -> Iterator[Model]:
        """Yield the models among all outputs whose weights a policy removed."""
        return published.dropped_models(self.storage, handle)

    def verify(self, handle: AnyHandle) -> Manifest:
        """Recompute every checksum and the fingerprint of `handle`, and return its manifest.

        Raises DatasetError naming the file that differs.
        """
        return Published(self.storage, handle).verify()

    # ------------------------------------------------------------------------------------ reading

    def open(self, handle: Dataset, shard: int | None = None) -> "pyarrow.dataset.Dataset":
        """Open `handle`, or one shard, as a pyarrow dataset in row order."""
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
        """Read the rows of `handle`, or of one shard, as a table.

        Raises DatasetError if a shard cannot be read.
        """
        try:
            table = self.open(handle, shard).to_table(columns=list(columns) if columns else None)
            # Following an offset that points elsewhere would kill the process.
            table.validate(full=True)
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
        """Read the rows of `handle`, or one shard, as a polars frame."""
        import polars as pl

        frame = pl.from_arrow(self.read(handle, columns, shard))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def handles(self, name: str) -> Iterator[AnyHandle]:
        """Yield everything published under the noun `name`, in order of fingerprint."""
        folder = name if name in ("models", "sources") else f"datasets/{name}"
        for fingerprint in self.storage.names(folder):
            if not FINGERPRINT.fullmatch(fingerprint):
                continue
            path = f"{folder}/{fingerprint}/{MANIFEST}"
            try:
                fields = sealed_json.read_unsealed(self.storage.read(path))
                handle = handle_of(name, fingerprint, fields["rows"])
            except FileNotFoundError:
                continue  # not published, or removed
            except (ValueError, KeyError, OSError) as error:
                raise DatasetError(
                    f"{self.url}/{path} is no manifest ({first_line(error)}): rerun what makes it"
                ) from error
            yield handle

    # --------------------------------------------------------------------------------- publishing

    @contextlib.contextmanager
    def partial(self, name: str, key: str) -> Iterator[Partial]:
        """Lock and open the unfinished dataset of one stage key.

        Another process that computes the same waits for the lock.
        """
        folder = f"partial/{name}/{key}"
        with self.storage.lock(f"{folder}.lock") as held:
            yield Partial(self.storage, name, folder, held, self.publish)

    def open_partial(self, name: str, key: str) -> Partial:
        """Open an unfinished dataset in a worker, whose parent locks and publishes."""
        return Partial(self.storage, name, f"partial/{name}/{key}", None, self.publish)

    def scratch(self, name: str) -> Path:
        """Create a local folder to build what then moves into the store."""
        folder = self.local / "partial" / name / f"scratch-{os.getpid()}-{secrets.token_hex(8)}"
        # Unlike a folder of tempfile it has the permissions of the umask, and keeps them in the
        # store.
        folder.mkdir(parents=True)
        return folder

    def publish_model(self, folder: Path, **facts: Any) -> Model:
        """Publish a finished Hugging Face folder, which is moved.

        `facts` are further fields of its manifest.
        """
        paths = model_files(folder)
        for path in paths:  # safetensors writes files for their owner alone, whatever the umask
            path.chmod(folder.stat().st_mode & 0o666)
        files = [stored_file(path, folder) for path in paths]
        model = Model(fingerprint=folder_fingerprint(files), parameters=parameters(paths))
        self.publish_folder(folder, model, files, **facts)
        return model

    def publish_folder(
        self, folder: Path, handle: Model | Source, files: list[StoredFile], **facts: Any
    ) -> None:
        """Publish the `files` in a local folder, which is moved, as `handle`.

        `facts` are further fields of the manifest.
        """
        manifest = Manifest(
            kind=noun(handle),
            fingerprint=handle.fingerprint,
            schema_version=schemas.VERSION,
            rows=count(handle),
            files=files,
            **facts,
        )
        self.publish(folder, handle, manifest)

    def adopt(self, folder: Path, handle: AnyHandle, manifest: Manifest) -> None:
        """Publish a folder of another store, which is moved, with its manifest.

        The folder must be verified. Nothing changes if the same content is here already.
        """
        self.publish(folder, handle, manifest, (folder / MANIFEST).read_bytes())

    def publish(
        self,
        source: str | Path,
        handle: AnyHandle,
        manifest: Manifest,
        written: bytes | None = None,
    ) -> None:
        """Publish `source` under its fingerprint, manifest last; replace a damaged copy.

        `source` is a folder of the storage, or of this machine, and is gone afterwards. The
        manifest is sealed now, unless it was `written` before.
        """
        content = written or sealed_json.encode(manifest)
        self._pin(handle)
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

    def _pin(self, handle: AnyHandle) -> None:
        if self.pin_set is not None and folder_of(handle) not in self._pinned:
            with self.storage.lock(pins.COLLECTION_LOCK):
                pins.pin(self.storage, self.pin_set, folder_of(handle))
                self._pinned.add(folder_of(handle))
