"""Garbage collection: remove what no version, study or running process needs.

Retention policies are applied as well. Needed content is found by following manifests, to parents
and outputs, from everything that a version or a study names and from what is pinned
(`wind.store.pins`). A collection holds one lock from its first look to its last removal; runs
continue meanwhile, and wait only to look into the cache. Content is removed before anything that it
names, and a manifest before its files. A collection that is killed at any moment leaves a store in
which everything visible is whole, parents included, and the next one finishes the work.
"""

import errno
import json
from dataclasses import dataclass

from wind.store import pins
from wind.store.datasets import Store
from wind.store.garbage.folders import Manifests
from wind.store.garbage.survey import Item, Survey
from wind.store.layout import DROPPED, MANIFEST
from wind.store.storage import LocalStorage, Storage


@dataclass(frozen=True)
class Collected:
    """The things that a collection removed, or would remove."""

    items: tuple[Item, ...]
    dry_run: bool

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Return the number of things and of bytes of each kind."""
        kinds = {
            kind: [item for item in self.items if item.kind == kind]
            for kind in {item.kind for item in self.items}
        }
        return {
            kind: (len(items), sum(item.bytes for item in items))
            for kind, items in sorted(kinds.items())
        }

    def bytes(self) -> int:
        """Return the bytes of everything."""
        return sum(item.bytes for item in self.items)


def collect(
    store: Store,
    *,
    dry_run: bool = False,
    weights: str | int | None = None,
    optimizer_states: int | None = None,
    keep_unfinished: bool = False,
) -> Collected:
    """Remove what nothing needs, and what no retention policy keeps.

    Args:
        store: may be in use by any number of runs.
        dry_run: remove nothing.
        weights: which weights of trained models to keep, overriding that setting of
            `RetentionConfig` in every run's last config.
        optimizer_states: the same for the last checkpoints of finished trainings.
        keep_unfinished: keep the finished shards and checkpoints of interrupted stages, from
            which a rerun continues.

    Raises DatasetError if a version, a study, or a manifest that one of them leads to cannot be
    read: what it needs is unknown.
    """
    manifests = Manifests(store)
    given = {"weights": weights, "optimizer_states": optimizer_states}
    overrides = {name: value for name, value in given.items() if value is not None}
    survey = Survey(store, manifests, overrides, keep_unfinished)
    if dry_run:
        return Collected(tuple(survey.items()), dry_run)
    # The first survey filled `manifests`, so that the second, which counts, does not keep runs
    # waiting for long.
    with store.storage.lock(pins.COLLECTION_LOCK):
        survey = Survey(store, manifests, overrides, keep_unfinished)
        collected = Collected(tuple(survey.items()), dry_run)
        _remove(store, survey)
    return collected


def _remove(store: Store, survey: Survey) -> None:
    """Remove what `survey` found, everything before what it names."""
    storage = store.storage
    for item in (*survey.records, *survey.descriptions):
        storage.delete(item.name)
    for folder in survey.garbage:
        storage.delete(f"{folder.name}/{MANIFEST}")
    for folder in survey.garbage:
        # A stage run by hand has no pins: it may be publishing the same content at this moment,
        # under this lock.
        with storage.try_lock(f"{folder.name}.lock") as is_free:
            if is_free and storage.size(f"{folder.name}/{MANIFEST}") is None:
                _delete(storage, folder.name)
    for folder in survey.dropped:
        storage.write(f"{folder.name}/{DROPPED}", json.dumps({"by": "retention.weights"}).encode())
        for entry in folder.weights():
            storage.delete(entry.name)
    for item in (*survey.unfinished, *survey.states):
        with storage.try_lock(f"{item.name}.lock") as is_free:
            if is_free:
                _delete(storage, item.name)
    for item in survey.temporary:
        if item.name.endswith(".lock"):
            _delete_lock(storage, item.name)
        else:
            storage.delete(item.name)
    cache = LocalStorage(store.local)
    for item in survey.cached:
        if item.name.endswith(".lock"):
            _delete_lock(cache, item.name)
        else:
            cache.delete(item.name)
    for name in survey.abandoned:
        pins.remove_abandoned(storage, name)


def _delete_lock(storage: Storage, name: str) -> None:
    with storage.try_lock(name) as is_free:
        if is_free:
            storage.delete(name)


def _delete(storage: Storage, folder: str) -> None:
    """Remove `folder`, except what a dying process is writing there.

    That is left to the next collection.
    """
    try:
        storage.delete(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
