"""Holds: what a running process needs and garbage collection must leave, although no version names
it yet.

A run takes a hold for as long as it lives, `<root>/holds/<id>/`, and marks in it every dataset and
model that it finds in the cache or is about to publish: an empty file of the same name. The lock
`<id>.lock` beside it tells whether the run still lives; it dies with its holder, and what the hold
of a dead run marked is free again. Two rules make this safe at any interleaving, and without a
clock:

- what is found is marked under the lock that a collection holds from its first look to its last
  removal: it is either marked before, and kept, or looked for after, and then seen to be gone;
- what is published is marked before anybody can see it, and stays marked until a version names it.
"""

import contextlib
import uuid
from collections.abc import Iterator

from wind.store.storage import Storage

COLLECTION_LOCK = "gc.lock"
FOLDER = "holds"


@contextlib.contextmanager
def hold(storage: Storage) -> Iterator[str]:
    """The id of a new hold, which lasts for the block."""
    name = uuid.uuid4().hex
    with storage.lock(f"{FOLDER}/{name}.lock"):
        try:
            yield name
        finally:
            _remove(storage, name)


def mark(storage: Storage, name: str, folder: str) -> None:
    """Keep the dataset or model in `folder` for as long as the hold `name` lasts, whether or not it
    is there yet.
    """
    storage.write(f"{FOLDER}/{name}/{folder}", b"")


def held(storage: Storage) -> set[str]:
    """The folders that living holds mark."""
    # first: a holder that ends removes them with its lock
    marks = {name: _marks(storage, name) for name in _names(storage)}
    return {
        folder
        for name, folders in marks.items()
        if not _is_abandoned(storage, name)
        for folder in folders
    }


def abandoned(storage: Storage) -> list[str]:
    """The holds whose holder is dead."""
    return [name for name in _names(storage) if _is_abandoned(storage, name)]


def remove_abandoned(storage: Storage, name: str) -> None:
    """Remove what the dead holder of `name` left."""
    with storage.try_lock(f"{FOLDER}/{name}.lock") as is_dead:
        if is_dead:
            _remove(storage, name)


def _names(storage: Storage) -> list[str]:
    return sorted({name.removesuffix(".lock") for name in storage.names(FOLDER)})


def _marks(storage: Storage, name: str) -> list[str]:
    prefix = f"{FOLDER}/{name}/"
    return [entry.name.removeprefix(prefix) for entry in storage.files(f"{FOLDER}/{name}")]


def _is_abandoned(storage: Storage, name: str) -> bool:
    with storage.try_lock(f"{FOLDER}/{name}.lock") as is_dead:
        return is_dead


def _remove(storage: Storage, name: str) -> None:
    storage.delete(f"{FOLDER}/{name}")
    storage.delete(f"{FOLDER}/{name}.lock")
