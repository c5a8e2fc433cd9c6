"""Published content: a dataset, model or source, as described and as stored."""

import contextlib
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from wind.errors import DatasetError, first_line
from wind.fingerprints import file_digest
from wind.store import schemas, sealed_json
from wind.store.handles import (
    AnyHandle,
    Dataset,
    Manifest,
    Model,
    StoredFile,
    count,
    folder_fingerprint,
    folder_of,
    label,
    noun,
)
from wind.store.layout import DROPPED, MANIFEST, WEIGHTS
from wind.store.shards import Content
from wind.store.storage import Entry, Storage, fetched_ahead


class Published:
    """The published content that a handle names, present or not."""

    def __init__(self, storage: Storage, handle: AnyHandle) -> None:
        self.handle = handle
        self.folder = folder_of(handle)
        self._storage = storage

    @property
    def where(self) -> str:
        """The address of the folder, for messages."""
        return f"{self._storage.url}/{self.folder}"

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises DatasetError if it is missing, or does not describe what the handle names.
        """
        path = f"{self.where}/{MANIFEST}"
        try:
            manifest = Manifest.model_validate(
                sealed_json.read(self._storage.read(f"{self.folder}/{MANIFEST}"))
            )
        except FileNotFoundError:
            raise DatasetError(
                f"{label(self.handle)} is not in the store {self._storage.url}: "
                "rerun the stage that makes it"
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
        if manifest.fingerprint != self.handle.fingerprint:
            raise DatasetError(
                f"{path} names another fingerprint, {manifest.fingerprint[:12]}: "
                "it was edited or moved"
            )
        if manifest.kind != noun(self.handle) or count(self.handle) != manifest.rows:
            raise DatasetError(
                f"{path} is of {manifest.rows} in {manifest.kind}, "
                f"not of {count(self.handle)} in {noun(self.handle)}: it was edited"
            )
        return manifest

    def files(self) -> dict[str, Entry]:
        """The files that are present, by name within the folder."""
        return {
            entry.name.removeprefix(f"{self.folder}/"): entry
            for entry in self._storage.files(self.folder)
        }

    def is_dropped(self) -> bool:
        """Return whether a retention policy removed the weights of this model.

        Its manifest and small files are still there.
        """
        return (
            isinstance(self.handle, Model)
            and self._storage.size(f"{self.folder}/{DROPPED}") is not None
        )

    def is_unchanged(self, *, renew: bool, may_be_dropped: bool) -> bool:
        """Return whether every file looks as it was published, see `is_whole`.

        With `may_be_dropped`, weights that a retention policy removed are not missed. Raises
        DatasetError or OSError for what cannot be read.
        """
        files, stored = self.manifest().files, self.files()
        if may_be_dropped and isinstance(self.handle, Model) and DROPPED in stored:
            files = [file for file in files if not file.name.endswith(WEIGHTS)]
        if any(file.name not in stored or stored[file.name].bytes != file.bytes for file in files):
            return False
        younger = [file for file in files if stored[file.name].modified > stored[MANIFEST].modified]
        names = [file.name for file in younger]
        with fetched_ahead(self._storage, self.folder, names, file_digest) as hashed:
            if any(
                file.sha256 != sha256 for file, (_, sha256) in zip(younger, hashed, strict=True)
            ):
                return False
        if younger and renew:
            name = f"{self.folder}/{MANIFEST}"
            with contextlib.suppress(OSError):  # a full disk does not make it damaged
                self._storage.write(name, self._storage.read(name))
        return True

    def verify(self) -> Manifest:
        """Recompute every checksum and the fingerprint, and return the manifest.

        Raises DatasetError naming the file that differs.
        """
        manifest = self.manifest()
        sizes = {name: entry.bytes for name, entry in self.files().items()}
        by_policy = WEIGHTS if self.is_dropped() else ()
        files = [
            file
            for file in manifest.files
            if file.name in sizes or not file.name.endswith(by_policy)
        ]
        for file in files:
            path = f"{self.where}/{file.name}"
            if file.name not in sizes:
                raise DatasetError(f"{path} is missing")
            if sizes[file.name] != file.bytes:
                raise DatasetError(
                    f"{path} has {sizes[file.name]} bytes, its manifest says {file.bytes}"
                )
        content, found = self._examine(files)
        is_dataset = isinstance(self.handle, Dataset)
        fingerprint = content.hexdigest() if is_dataset else folder_fingerprint(manifest.files)
        if fingerprint != self.handle.fingerprint:
            raise DatasetError(
                f"{self.where} has content {fingerprint[:12]}, "
                f"not the {self.handle.fingerprint[:12]} it is named for"
            )
        if found != files or (is_dataset and sum(file.rows for file in found) != manifest.rows):
            raise DatasetError(
                f"{self.where}/{MANIFEST} counts other rows than its shards hold: it was edited"
            )
        return manifest

    def check_sha256(self, file: StoredFile, sha256: str) -> None:
        """Raise DatasetError unless `sha256` is the checksum that the manifest gives `file`."""
        if sha256 != file.sha256:
            raise DatasetError(
                f"{self.where}/{file.name} does not have the sha256 of its manifest: "
                "its content was changed"
            )

    def further_outputs(self, seen: set[AnyHandle]) -> list[AnyHandle]:
        """Return the outputs not yet in `seen`, and add them.

        A forged manifest may name itself.
        """
        further = [
            output
            for output in dict.fromkeys(self.manifest().outputs.values())
            if output not in seen
        ]
        seen.update(further)
        return further

    def _examine(self, files: Sequence[StoredFile]) -> tuple[Content, list[StoredFile]]:
        """Read the stored `files`: their content, and a manifest entry for each.

        No file is parsed before its checksum is right.
        """
        content, found = Content(schemas.KEYS.get(noun(self.handle), ())), []
        is_dataset = isinstance(self.handle, Dataset)
        names = [file.name for file in files]
        with fetched_ahead(self._storage, self.folder, names, file_digest) as fetched:
            for file, (path, sha256) in zip(files, fetched, strict=True):
                self.check_sha256(file, sha256)
                rows = content.add(path, f"{self.where}/{file.name}") if is_dataset else file.rows
                size = path.stat().st_size
                found.append(StoredFile(name=file.name, bytes=size, sha256=sha256, rows=rows))
        return content, found


def is_whole(storage: Storage, handle: AnyHandle, *, renew: bool = False) -> bool:
    """Return whether `handle` and all its outputs look as they were published.

    This is the cheap check before a cache hit. A file of the recorded size that is not younger than
    the manifest, which was written after it, counts as unchanged; a younger one is hashed. An
    output whose weights a retention policy removed counts as whole.

    Args:
        storage: where the content is stored.
        handle: names the content.
        renew: rewrite a manifest whose younger files turn out right, as in a copied store, so that
            they are not hashed again.
    """
    waiting, seen = [handle], {handle}
    while waiting:
        each = Published(storage, waiting.pop())
        try:
            if not each.is_unchanged(renew=renew, may_be_dropped=each.handle != handle):
                return False
            waiting += each.further_outputs(seen)
        except (DatasetError, OSError):
            return False
    return True


def dropped_models(storage: Storage, handle: AnyHandle) -> Iterator[Model]:
    """Yield the models among all outputs whose weights a policy removed.

    Outputs of outputs are among them.
    """
    waiting, seen = [handle], {handle}
    while waiting:
        for output in Published(storage, waiting.pop()).further_outputs(seen):
            if isinstance(output, Model) and Published(storage, output).is_dropped():
                yield output
            elif isinstance(output, Dataset):
                waiting.append(output)
