"""Copies of stored content in this machine's cache of an object store."""

import hashlib
from pathlib import Path

from wind.store.handles import AnyHandle
from wind.store.layout import MANIFEST
from wind.store.published import Published, is_whole
from wind.store.storage import LocalStorage, Storage


def local_copy(storage: Storage, handle: AnyHandle) -> Path:
    """Return a local folder with the files of `handle`, copied if absent.

    Raises DatasetError if a file does not have the checksum of its manifest.
    """
    cache, published = LocalStorage(storage.local), Published(storage, handle)
    if not is_whole(cache, handle):
        with cache.lock(f"{published.folder}.lock"):
            _copy(storage, cache, published)
    return cache.path(published.folder)


def _copy(storage: Storage, cache: LocalStorage, published: Published) -> None:
    """Copy the files that `cache` lacks, checked, and then the manifest."""
    folder = published.folder
    for file in published.manifest().files:
        if cache.size(f"{folder}/{file.name}") == file.bytes:
            continue  # checked when it was copied
        with cache.building(f"{folder}/{file.name}") as path:
            hasher = hashlib.sha256()
            with path.open("wb") as copy:
                for chunk in storage.chunks(f"{folder}/{file.name}"):
                    hasher.update(chunk)
                    copy.write(chunk)
            published.check_sha256(file, hasher.hexdigest())
    cache.write(f"{folder}/{MANIFEST}", storage.read(f"{folder}/{MANIFEST}"))
