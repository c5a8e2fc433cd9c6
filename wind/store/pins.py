"""Pins: content that a running process needs and garbage collection must keep.

No version names this content yet. A run opens a pin set for as long as it lives,
`<root>/holds/<id>/`. In it the run pins every dataset and model that it finds in the cache or is
about to publish: an empty file of the same name. The lock `<id>.lock` beside the set shows whether
the run is alive; a dead process loses its lock, and its pins no longer keep anything. Two rules
make this safe in any order of events, without a clock:

- Cached content is pinned under the lock that a collection holds from its first look to its last
  removal. The run either pins it before the collection starts, and it is kept, or looks for it
  after the collection ends, and sees whether it is gone.
- New content is pinned before anybody can see it, and stays pinned until a version names it.
"""

import contextlib
import uuid
from collections.abc import Iterator

from wind.store.storage import Storage

COLLECTION_LOCK = "gc.lock"
FOLDER = "holds"  # the name that stores have always used


@contextlib.contextmanager
def open_pin_set(storage: Storage) -> Iterator[str]:
    """Open a new pin set for the block and yield its id."""
    pin_set = uuid.uuid4().hex
    with storage.lock(f"{FOLDER}/{pin_set}.lock"):
        try:
            yield pin_set
        finally:
            _remove(storage, pin_set)


def pin(storage: Storage, pin_set: str, folder: str) -> None:
    """Keep the content of `folder`, present or not, while `pin_set` is open."""
    storage.write(f"{FOLDER}/{pin_set}/{folder}", b"")


def pinned(storage: Storage) -> set[str]:
    """The folders that running processes have pinned."""
    # The pins are read before the locks: a process that ends removes both.
    pins = {pin_set: _pins(storage, pin_set) for pin_set in _pin_sets(storage)}
    return {
        folder
        for pin_set, folders in pins.items()
        if not _is_abandoned(storage, pin_set)
        for folder in folders
    }


def abandoned(storage: Storage) -> list[str]:
    """The pin sets of dead processes."""
    return [pin_set for pin_set in _pin_sets(storage) if _is_abandoned(storage, pin_set)]


def remove_abandoned(storage: Storage, pin_set: str) -> None:
    """Remove `pin_set` if its process is dead."""
    with storage.try_lock(f"{FOLDER}/{pin_set}.lock") as is_dead:
        if is_dead:
            _remove(storage, pin_set)


def _pin_sets(storage: Storage) -> list[str]:
    return sorted({name.removesuffix(".lock") for name in storage.names(FOLDER)})


def _pins(storage: Storage, pin_set: str) -> list[str]:
    prefix = f"{FOLDER}/{pin_set}/"
    return [entry.name.removeprefix(prefix) for entry in storage.files(f"{FOLDER}/{pin_set}")]


def _is_abandoned(storage: Storage, pin_set: str) -> bool:
    with storage.try_lock(f"{FOLDER}/{pin_set}.lock") as is_dead:
        return is_dead


def _remove(storage: Storage, pin_set: str) -> None:
    storage.delete(f"{FOLDER}/{pin_set}")
    storage.delete(f"{FOLDER}/{pin_set}.lock")
