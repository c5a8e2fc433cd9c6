"""Verification of stored folders: their manifests and files."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from wind.audit.verification.files import Files
from wind.audit.verification.foreign_keys import ForeignKeys
from wind.audit.verification.records import OLD, verify_computations, verify_descriptions
from wind.errors import DatasetError, first_line
from wind.store.handles import (
    AnyHandle,
    Dataset,
    Manifest,
    Model,
    StoredFile,
    count,
    folder_of,
    handle_of,
)
from wind.store.layout import DROPPED, MANIFEST, WEIGHTS
from wind.store.schemas import declared, find_declaration
from wind.store.seals import Seal, seal_of
from wind.store.shards import check_order

FOLDERS = ("models", "sources")


@dataclass
class Folders:
    """The folders verified so far in one store, each once."""

    files: Files
    foreign_keys: ForeignKeys
    bytes_checked: int = 0
    manifests: dict[str, Manifest | None] = field(
        default_factory=dict
    )  # by folder; None if damaged
    seals: dict[str, Seal] = field(default_factory=dict)  # of the manifests read, by folder
    _walked: set[AnyHandle] = field(default_factory=set)
    _related: set[AnyHandle] = field(default_factory=set)

    def lineage(self, handles: Iterable[AnyHandle]) -> None:
        """Verify `handles` and everything they were made from."""
        waiting = list(handles)
        while waiting:
            handle = waiting.pop()
            if handle in self._walked:
                continue
            self._walked.add(handle)
            manifest = self._folder(handle)
            if manifest is not None:
                self._relations(handle)
                waiting += [*manifest.parents.values(), *manifest.outputs.values()]

    def dataset(self, handle: AnyHandle) -> None:
        """Verify a dataset, model or source, and its foreign keys.

        The foreign keys of a dataset refer to rows of its parents.
        """
        self._folder(handle)
        self._relations(handle)

    def unreferenced(self, noun: str, folder: str) -> None:
        """Verify a folder that no handle has led to so far."""
        if folder in self.manifests:
            return
        manifest = self._manifest(folder)
        if manifest is None:
            return
        try:
            handle = handle_of(noun, folder.rpartition("/")[2], manifest.rows)
        except ValidationError:
            self.files.find(folder, "is not the folder of a dataset")
            return
        self.dataset(handle)

    def whole(self, handles: Mapping[str, AnyHandle]) -> dict[str, AnyHandle]:
        """Return those of `handles` whose folders were verified without a finding."""
        return {
            name: handle
            for name, handle in handles.items()
            if self.manifests.get(folder_of(handle)) is not None
        }

    def _folder(self, handle: AnyHandle) -> Manifest | None:
        """Verify all files of `handle` and return its manifest.

        None if anything was found.
        """
        folder = folder_of(handle)
        if folder not in self.manifests:
            self.manifests[folder] = None
            before = len(self.files.findings)
            manifest = self._manifest(folder)
            if manifest is not None:
                self._verify_files(handle, folder, manifest)
            if len(self.files.findings) == before:
                self.manifests[folder] = manifest
            if manifest is not None:
                verify_computations(self.files, folder)
                verify_descriptions(self.files, manifest.provenance)
        manifest = self.manifests[folder]
        if manifest is not None and manifest.rows != count(handle):
            self.files.find(
                f"{folder}/{MANIFEST}",
                f"counts {manifest.rows}, but what refers to it says {count(handle)}",
            )
            return None
        return manifest

    def _manifest(self, folder: str) -> Manifest | None:
        """Return the manifest in `folder`, None if missing or damaged."""
        name = f"{folder}/{MANIFEST}"
        if not self.files.names(folder):
            self.files.find(
                folder,
                f"is not in the store {self.files.store.storage.url}: "
                "rerun the stage that makes it",
            )
            return None
        fields = self.files.sealed(name, OLD)
        if fields is None:
            return None
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            self.files.find(name, f"is not a manifest: {first_line(error)}")
            return None
        kind, _, fingerprint = folder.removeprefix("datasets/").partition("/")
        if (manifest.kind, manifest.fingerprint) != (kind, fingerprint):
            self.files.find(
                name, f"names {manifest.kind}/{manifest.fingerprint[:12]}: it was edited or moved"
            )
            return None
        self.seals[folder] = seal_of(fields)
        return manifest

    def _verify_files(self, handle: AnyHandle, folder: str, manifest: Manifest) -> None:
        """Verify that a folder holds exactly the files of its manifest.

        Their sizes and checksums must match, so every byte is covered.
        """
        before = len(self.files.findings)
        present = set(self.files.names(folder))
        self._verify_listing(handle, folder, manifest, present)
        if len(self.files.findings) > before:
            return
        self.bytes_checked += sum(file.bytes for file in manifest.files if file.name in present)
        try:
            self.files.store.verify(handle)
        except (DatasetError, OSError) as error:
            for file in (each for each in manifest.files if each.name in present):
                self._verify_checksum(f"{folder}/{file.name}", file)
            if len(self.files.findings) == before:
                self.files.find(
                    f"{folder}/{MANIFEST}", f"does not describe what lies beside it: {error}"
                )
            return
        if isinstance(handle, Dataset) and find_declaration(handle.name) is not None:
            self._verify_order(handle, folder, manifest)

    def _verify_listing(
        self, handle: AnyHandle, folder: str, manifest: Manifest, present: set[str]
    ) -> None:
        """Verify the names and sizes of the files `present` in a folder."""
        plain = self.files.plain(folder)
        is_dropped = isinstance(handle, Model) and DROPPED in plain
        listed = {MANIFEST, *(file.name for file in manifest.files)}
        for name in sorted(present - listed - ({DROPPED} if is_dropped else set())):
            self.files.find(f"{folder}/{name}", "is not in its manifest: it was added")
        for file in manifest.files:
            if file.name not in present and is_dropped and file.name.endswith(WEIGHTS):
                self.files.note(f"{folder}/{file.name}", "was removed, as a retention policy says")
            elif file.name not in present:
                self.files.find(f"{folder}/{file.name}", "is missing")
            elif file.name not in plain:
                self.files.find(f"{folder}/{file.name}", "is not a plain file")
            elif plain[file.name] != file.bytes:
                self.files.find(
                    f"{folder}/{file.name}",
                    f"has {plain[file.name]} bytes, its manifest says {file.bytes}",
                )

    def _verify_checksum(self, name: str, file: StoredFile) -> None:
        hasher = hashlib.sha256()
        try:
            for chunk in self.files.store.storage.chunks(name):
                hasher.update(chunk)
        except OSError as error:
            self.files.find(name, f"cannot be read ({error.strerror or error})")
            return
        if hasher.hexdigest() != file.sha256:
            self.files.find(
                name, "does not have the sha256 of its manifest: its content was changed"
            )

    def _verify_order(self, handle: Dataset, folder: str, manifest: Manifest) -> None:
        """Verify that each shard is sorted by key, as joins require."""
        key = declared(handle.name).key
        for index, file in enumerate(manifest.files):
            try:
                check_order(self.files.store.read(handle, key, shard=index), key)
            except DatasetError as error:
                self.files.find(f"{folder}/{file.name}", f"is out of order: {error}")

    def _relations(self, handle: AnyHandle) -> None:
        """Verify the foreign keys of `handle`, and those among its parents."""
        manifest = self.manifests.get(folder_of(handle))
        if not isinstance(handle, Dataset) or manifest is None or handle in self._related:
            return
        self._related.add(handle)
        whole = {
            name: parent
            for name, parent in manifest.parents.items()
            if self._folder(parent) is not None
        }
        self.foreign_keys.of_parents(handle, whole, manifest)
