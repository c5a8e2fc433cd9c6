"""Surveys: what a store contains, and which of it nothing keeps."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wind.files import writer_of
from wind.nesting import json_value
from wind.store import pins, sealed_json
from wind.store.computations import BESIDE
from wind.store.datasets import Store
from wind.store.garbage.folders import Folder, Folders, Manifests
from wind.store.garbage.retention import retained
from wind.store.garbage.temporary import is_left_behind, process_of
from wind.store.handles import HANDLE, folder_of
from wind.store.layout import CHECKPOINTS, FINISHED
from wind.store.provenance import ENVIRONMENTS, PATCHES, described_by
from wind.store.storage import Entry, LocalStorage
from wind.store.studies import studies
from wind.store.versions import Versions, runs

IN_CACHE = "temporary files in the cache of this machine"
FINGERPRINTED = re.compile(r"^[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """One thing that a collection removes."""

    kind: str
    name: str  # relative to the root, or to the cache
    bytes: int


class Survey:
    """A survey of a store: its content, and what nothing keeps.

    The order of looking is what makes it safe: first what is stored, then pins, then versions. What
    is stored was pinned before it appeared, and a run that has ended since has left its versions
    behind.
    """

    def __init__(
        self,
        store: Store,
        manifests: Manifests,
        overrides: Mapping[str, Any],
        keep_unfinished: bool,
    ) -> None:
        self._store = store
        self._storage = store.storage
        self._folders = Folders(store.storage, manifests)
        self._strays = self._folders.strays
        self._beside = [entry for tree in BESIDE for entry in self._storage.files(tree)]
        self._results = list(self._storage.files("results"))
        self._signatures = [
            each
            for run in self._storage.names("runs")
            for each in self._storage.files(f"runs/{run}/signatures")
        ]
        self._described = [
            entry for tree in (ENVIRONMENTS, PATCHES) for entry in self._storage.files(tree)
        ]
        unfinished = list(self._list_unfinished())
        self.unfinished = (
            [] if keep_unfinished else [item for item, is_free in unfinished if is_free]
        )
        pinned = pins.pinned(self._storage)
        self.abandoned = pins.abandoned(self._storage)
        self._is_quiet = not pinned
        self._is_finished = self._is_quiet and len(self.unfinished) == len(unfinished)
        versions = {run: list(Versions(store, run)) for run in runs(store)}
        needed = {
            folder_of(handle): f"{version.run}@{version.number}"
            for published in versions.values()
            for version in published
            for handle in version.handles().values()
        }
        needed |= {
            folder_of(handle): f"the study {study.run}"
            for study in studies(store)
            for handle in study.datasets.values()
        }
        self._live = self._folders.reached(dict.fromkeys(pinned, None))
        self._kept = self._folders.reached(needed) | self._live
        self._retained = retained(store, self._folders, versions, overrides)
        self.states = list(self._list_states())
        self._signed = {
            version.signatures() for published in versions.values() for version in published
        }

    def items(self) -> Iterator[Item]:
        """Yield everything that a collection removes, kind by kind."""
        yield from self.records
        yield from self.descriptions
        for folder in self.garbage:
            yield Item(folder.name.split("/")[0], folder.name, folder.bytes())
        for folder in self.dropped:
            yield Item("weights", folder.name, sum(entry.bytes for entry in folder.weights()))
        yield from self.unfinished
        yield from self.states
        yield from self.temporary
        yield from self.cached
        yield from (
            Item("holds of dead runs", f"{pins.FOLDER}/{name}", 0) for name in self.abandoned
        )

    @cached_property
    def garbage(self) -> list[Folder]:
        """The stored folders that nothing keeps, each before all that it names."""
        return self._folders.outside(self._kept)

    @cached_property
    def dropped(self) -> list[Folder]:
        """Kept models whose weights no policy keeps and no process needs."""
        needed = self._retained.weights | self._live
        return [
            folder
            for name, folder in sorted(self._folders.by_name.items())
            if name in self._kept and name not in needed and folder.manifest is not None
            # A model that was not trained here came from outside, and could not be recomputed.
            if name.startswith("models/") and folder.manifest.computed_by and folder.weights()
        ]

    @cached_property
    def records(self) -> list[Item]:
        """Records about content that is not kept, and signatures of no version.

        The records are those of checks, of computations and of Prefect's cache.
        """
        found = []
        for entry in self._beside:
            parts = entry.name.split("/")
            owner = next(
                (
                    (parts[index - 1], part[:64])
                    for index, part in enumerate(parts)
                    if FINGERPRINTED.match(part)
                ),
                None,
            )
            if owner and not {"/".join(owner), "/".join(("datasets", *owner))} & self._kept:
                found.append(Item(parts[0], entry.name, entry.bytes))
        found += [
            Item("cache records", entry.name, entry.bytes)
            for entry in self._results
            if self._result_is_garbage(entry)
        ]
        if self._is_quiet:  # an import writes them before their version
            found += [
                Item("signatures", entry.name, entry.bytes)
                for entry in self._signatures
                if entry.name.rpartition("/")[0] not in self._signed
            ]
        return found

    @cached_property
    def descriptions(self) -> list[Item]:
        """Environments and patches that no kept record names.

        There are none while unfinished work may yet name them.
        """
        if not self._is_finished:
            return []
        gone = {item.name for item in self.records}
        facts = [
            folder.manifest.provenance
            for name, folder in self._folders.by_name.items()
            if name in self._kept and folder.manifest
        ]
        try:
            records = [
                sealed_json.read_unsealed(self._storage.read(entry.name))
                for entry in self._beside
                if _is_computation(entry) and entry.name not in gone
            ]
        except (OSError, ValueError):  # what a damaged record names is unknown
            return []
        facts += [record.get("provenance", {}) for record in records]
        named = {name for provenance in facts for name in described_by(provenance)}
        left = [
            entry
            for entry in self._described
            if entry.name not in named and writer_of(entry.name.split("/")[-1]) is None
        ]
        return [Item(entry.name.split("/")[0], entry.name, entry.bytes) for entry in left]

    @cached_property
    def temporary(self) -> list[Item]:
        """Files that a dead process was writing, and locks that nobody holds."""
        written = (
            *self._strays,
            *self._beside,
            *self._results,
            *self._described,
            *self._storage.files("runs"),
        )
        left = [entry for entry in written if is_left_behind(entry.name.rpartition("/")[2])]
        left += [
            entry
            for entry in self._strays
            if entry.name.endswith(".lock") and self._is_free(entry.name)
        ]
        return [Item("temporary files", entry.name, entry.bytes) for entry in left]

    @cached_property
    def cached(self) -> list[Item]:
        """Left-behind files and free locks in this machine's object-store cache."""
        if isinstance(self._storage, LocalStorage):
            return []
        cache = LocalStorage(self._store.local)
        left = [
            entry for entry in cache.files("") if any(map(is_left_behind, entry.name.split("/")))
        ]
        locks = [entry for entry in cache.files("") if entry.name.endswith(".lock")]
        for entry in locks:
            with cache.try_lock(entry.name) as is_free:
                left += [entry] if is_free else []
        return [Item(IN_CACHE, entry.name, entry.bytes) for entry in left]

    def _list_unfinished(self) -> Iterator[tuple[Item, bool]]:
        """Yield the unfinished work of stages, and whether nobody is doing it.

        A lock beside it shows that, or a process number in its name.
        """
        below: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self._storage.files("partial"):
            parts = entry.name.split("/")
            if len(parts) > 3:
                below["/".join(parts[:3])].append(entry)
            else:
                self._strays.append(entry)
        # A folder may be empty. A lock may have appeared since the files were listed: it is
        # nobody's unfinished work.
        named = (
            f"partial/{noun}/{name}"
            for noun in self._storage.names("partial")
            for name in self._storage.names(f"partial/{noun}")
        )
        files = {entry.name for entry in self._strays}
        folders = {name for name in named if name not in files and not name.endswith(".lock")}
        for folder in sorted(folders | set(below)):
            if any(entry.name == f"{folder}/{FINISHED}" for entry in below[folder]):
                continue
            size = sum(entry.bytes for entry in below[folder])
            name = folder.rpartition("/")[2]
            is_abandoned = (
                self._is_free(f"{folder}.lock")
                if process_of(name) is None
                else is_left_behind(name)
            )
            yield Item("unfinished", folder, size), is_abandoned

    def _list_states(self) -> Iterator[Item]:
        """Yield the optimizer states of finished trainings that no policy keeps."""
        for name in self._storage.names(CHECKPOINTS):
            folder = f"{CHECKPOINTS}/{name}"
            model = self._finished(folder)
            if model is None or f"models/{model}" in self._retained.states:
                continue
            if self._is_free(f"{folder}.lock"):
                size = sum(entry.bytes for entry in self._storage.files(folder))
                yield Item("optimizer states", folder, size)

    def _finished(self, folder: str) -> str | None:
        """Return the fingerprint of the model of a finished training.

        None if the training in `folder` has not finished.
        """
        try:
            return str(json_value(self._storage.read(f"{folder}/{FINISHED}"))["model"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _result_is_garbage(self, entry: Entry) -> bool:
        if process_of(entry.name.rpartition("/")[2]) is not None:
            return False  # a temporary file, which stays or goes with its process
        try:
            result = json_value(json_value(self._storage.read(entry.name))["result"].encode())
            handle = HANDLE.validate_python(
                {name: value for name, value in result.items() if name != "computation"}
            )
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self._is_quiet  # damaged, unless somebody is writing it
        return folder_of(handle) not in self._kept

    def _is_free(self, lock: str) -> bool:
        with self._storage.try_lock(lock) as is_free:
            return is_free


def _is_computation(entry: Entry) -> bool:
    return entry.name.startswith("computations/") and entry.name.endswith(".json")
