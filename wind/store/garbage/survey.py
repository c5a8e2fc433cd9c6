"""What is in a store, and what of it nothing keeps."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from wind.config.runs import RetentionConfig
from wind.errors import DatasetError
from wind.files import writer_of
from wind.nesting import json_value
from wind.store import pins
from wind.store.computations import BESIDE
from wind.store.datasets import CHECKPOINTS, FINISHED, MANIFEST, WEIGHTS, Store
from wind.store.handles import FINGERPRINT, HANDLE, Manifest, Model, folder_of
from wind.store.provenance import ENVIRONMENTS, PATCHES, described_by
from wind.store.sealed_json import parsed
from wind.store.storage import Entry, LocalStorage
from wind.store.studies import studies
from wind.store.versions import Version, Versions, runs

IN_CACHE = "temporary files in the cache of this machine"
SCRATCH = re.compile(r"scratch-(\d+)-.*")
FINGERPRINTED = re.compile(r"^[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """One thing that is removed."""

    kind: str
    name: str  # relative to the root, or to the cache
    bytes: int


class Manifests:
    """What each manifest names; read once, unless the file has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[Entry, Manifest | None] = {}

    def of(self, entry: Entry) -> Manifest | None:
        """The manifest in the file `entry`, or None if it cannot be read."""
        if entry not in self._read:
            try:
                self._read[entry] = Manifest.model_validate_json(
                    self._store.storage.read(entry.name)
                )
            except (OSError, ValidationError):
                self._read[entry] = None
        return self._read[entry]


@dataclass
class Folder:
    """A stored dataset, model or source, as far as it is there."""

    name: str
    files: list[Entry] = field(default_factory=list)
    manifest: Manifest | None = None

    def bytes(self) -> int:
        """The size of what is there."""
        return sum(entry.bytes for entry in self.files)

    def names(self) -> list[str]:
        """The folders that its manifest names."""
        manifest = self.manifest
        return (
            []
            if manifest is None
            else [
                folder_of(each) for each in (*manifest.parents.values(), *manifest.outputs.values())
            ]
        )

    def weights(self) -> list[Entry]:
        """The files that hold weights."""
        return [entry for entry in self.files if entry.name.endswith(WEIGHTS)]


class Survey:
    """What is in a store, and what of it nothing keeps.

    The order of looking is what makes it safe: first what is there, then holds, then versions. What
    is there was marked before; a hold that has ended since has left its versions behind.
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
        self._strays: list[Entry] = []
        self.folders = self._list(manifests)
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
        marked = pins.held(self._storage)
        self.abandoned = pins.abandoned(self._storage)
        self._is_quiet = not marked
        self._is_finished = self._is_quiet and len(self.unfinished) == len(unfinished)
        versions = {run: list(Versions(store, run)) for run in runs(store)}
        named = {
            folder_of(handle): f"{version.run}@{version.number}"
            for published in versions.values()
            for version in published
            for handle in version.handles().values()
        }
        named |= {
            folder_of(handle): f"the study {study.run}"
            for study in studies(store)
            for handle in study.datasets.values()
        }
        self.live = self._reached(dict.fromkeys(marked, None))
        self.kept = self._reached(named) | self.live
        policies = {run: _policy(store, run).model_copy(update=overrides) for run in versions}
        self._find_what_policies_keep(versions, policies)
        self._signed = {
            version.signatures() for published in versions.values() for version in published
        }

    def items(self) -> Iterator[Item]:
        """Everything that is removed, kind by kind."""
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
        waiting = {name: folder for name, folder in self.folders.items() if name not in self.kept}
        named_by = Counter(
            name for folder in waiting.values() for name in set(folder.names()) - {folder.name}
        )
        ready = [name for name in waiting if not named_by[name]]
        ordered = []
        while waiting:
            # the second only where manifests were edited into a circle
            name = ready.pop() if ready else next(iter(waiting))
            if (folder := waiting.pop(name, None)) is None:
                continue
            ordered.append(folder)
            for below in set(folder.names()) - {name}:
                named_by[below] -= 1
                if not named_by[below]:
                    ready.append(below)
        return ordered

    @cached_property
    def dropped(self) -> list[Folder]:
        """The kept models whose weights no policy keeps and no running process needs."""
        needed = self._weights | self.live
        return [
            folder
            for name, folder in sorted(self.folders.items())
            if name in self.kept and name not in needed and folder.manifest is not None
            # What was not trained here came from outside, and could not be computed again.
            if name.startswith("models/") and folder.manifest.computed_by and folder.weights()
        ]

    @cached_property
    def records(self) -> list[Item]:
        """Records of checks and computations of datasets that are not kept, cache records of such,
        signatures of no version.
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
            if owner and not {"/".join(owner), "/".join(("datasets", *owner))} & self.kept:
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
                if self._is_of_no_version(entry)
            ]
        return found

    @cached_property
    def descriptions(self) -> list[Item]:
        """Environments and patches that no kept record names; none while anything is unfinished
        that may yet name them.
        """
        if not self._is_finished:
            return []
        gone = {item.name for item in self.records}
        made = [
            folder.manifest.provenance
            for name, folder in self.folders.items()
            if name in self.kept and folder.manifest
        ]
        try:
            records = [
                parsed(self._storage.read(entry.name))
                for entry in self._beside
                if _tells(entry, gone)
            ]
        except (OSError, ValueError):  # what a damaged record named is not known
            return []
        made += [record.get("provenance", {}) for record in records]
        named = {name for provenance in made for name in described_by(provenance)}
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
        left = [entry for entry in written if _is_of_the_dead(entry.name.rpartition("/")[2])]
        left += [
            entry
            for entry in self._strays
            if entry.name.endswith(".lock") and self._is_free(entry.name)
        ]
        return [Item("temporary files", entry.name, entry.bytes) for entry in left]

    @cached_property
    def cached(self) -> list[Item]:
        """Files that a dead process left in this machine's cache of an object store, and locks that
        nobody holds.
        """
        if isinstance(self._storage, LocalStorage):
            return []
        cache = LocalStorage(self._store.local)
        left = [
            entry for entry in cache.files("") if any(map(_is_of_the_dead, entry.name.split("/")))
        ]
        locks = [entry for entry in cache.files("") if entry.name.endswith(".lock")]
        for entry in locks:
            with cache.try_lock(entry.name) as is_free:
                left += [entry] if is_free else []
        return [Item(IN_CACHE, entry.name, entry.bytes) for entry in left]

    def _list(self, manifests: Manifests) -> dict[str, Folder]:
        folders: dict[str, Folder] = {}
        for tree, depth in (("datasets", 3), ("models", 2), ("sources", 2)):
            for entry in self._storage.files(tree):
                parts = entry.name.split("/")
                if len(parts) == depth + 1 and FINGERPRINT.fullmatch(parts[depth - 1]):
                    name = "/".join(parts[:depth])
                    folder = folders.setdefault(name, Folder(name))
                    folder.files.append(entry)
                    if parts[depth] == MANIFEST:
                        folder.manifest = manifests.of(entry)
                else:
                    self._strays.append(entry)
        return folders

    def _list_unfinished(self) -> Iterator[tuple[Item, bool]]:
        """What stages have not finished, and whether nobody does: a lock beside it tells, or a
        process number in its name.
        """
        below: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self._storage.files("partial"):
            parts = entry.name.split("/")
            if len(parts) > 3:
                below["/".join(parts[:3])].append(entry)
            else:
                self._strays.append(entry)
        # A folder may be empty, and a lock may have come since the files were listed: it is
        # nobody's unfinished work.
        named = (
            f"partial/{noun}/{name}"
            for noun in self._storage.names("partial")
            for name in self._storage.names(f"partial/{noun}")
        )
        files = {entry.name for entry in self._strays}
        for folder in sorted(
            {name for name in named if name not in files and not name.endswith(".lock")}
            | set(below)
        ):
            size = sum(entry.bytes for entry in below[folder])
            name = folder.rpartition("/")[2]
            is_finished = any(entry.name == f"{folder}/{FINISHED}" for entry in below[folder])
            if not is_finished:
                is_of_the_dead = (
                    _is_of_the_dead(name)
                    if _writer_of(name) is not None
                    else self._is_free(f"{folder}.lock")
                )
                yield Item("unfinished", folder, size), is_of_the_dead

    def _find_what_policies_keep(
        self, versions: Mapping[str, list[Version]], policies: Mapping[str, RetentionConfig]
    ) -> None:
        """Find the models whose weights, and the finished trainings whose states, some policy
        keeps.
        """
        self._weights: set[str] = set()
        with_state: set[str] = set()
        known = {version.id for published in versions.values() for version in published}
        for run, published in versions.items():
            policy = policies[run]
            tagged = set(Versions(self._store, run).tags().values())
            last = policy.weights if isinstance(policy.weights, int) else 0
            for age, version in enumerate(reversed(published)):
                trained = set(self._trained(version))
                # the first, or the one before it was forgotten
                if version.content.previous not in known:
                    # no training of a version gives it again
                    self._weights.add(folder_of(version.content.model_in))
                if policy.weights == "all" or version.id in tagged or age < last:
                    self._weights |= trained
                if age < policy.optimizer_states:
                    with_state |= trained
        self.states = [
            Item(
                "optimizer states",
                folder,
                sum(entry.bytes for entry in self._storage.files(folder)),
            )
            for name in self._storage.names(CHECKPOINTS)
            if (model := self._finished(folder := f"{CHECKPOINTS}/{name}")) is not None
            and f"models/{model}" not in with_state
            if self._is_free(f"{folder}.lock")
        ]

    def _trained(self, version: Version) -> Iterator[str]:
        """The models that `version` made: its policy, and what else its training left."""
        yield folder_of(version.content.model_out)
        waiting = [folder_of(dataset) for dataset in version.content.datasets.values()]
        while waiting:
            folder = self.folders.get(waiting.pop())
            for output in folder.manifest.outputs.values() if folder and folder.manifest else ():
                if isinstance(output, Model):
                    yield folder_of(output)
                else:
                    waiting.append(folder_of(output))

    def _finished(self, folder: str) -> str | None:
        """The fingerprint of the model that the training in `folder` ended with, if it ended."""
        try:
            return str(json_value(self._storage.read(f"{folder}/{FINISHED}"))["model"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _reached(self, roots: Mapping[str, str | None]) -> set[str]:
        """`roots` and all that their manifests reach; each root by who names it, or None where
        something may be gone.
        """
        reached: set[str] = set()
        waiting = list(roots.items())
        while waiting:
            name, owner = waiting.pop()
            if name in reached:
                continue
            reached.add(name)
            folder = self.folders.get(name)
            if owner and (folder is None or folder.manifest is None):
                raise DatasetError(
                    f"{owner} needs {name}, whose manifest is missing or damaged, so that what else it needs is unknown: run its "
                    "recipe again, which heals it, or `wind forget` it, and collect then; nothing was removed"
                )
            waiting += [(below, owner) for below in folder.names()] if folder else []
        return reached

    def _result_is_garbage(self, entry: Entry) -> bool:
        if _writer_of(entry.name.rpartition("/")[2]) is not None:
            return False  # a temporary file, whose writer decides
        try:
            result = json_value(json_value(self._storage.read(entry.name))["result"].encode())
            handle = HANDLE.validate_python(
                {name: value for name, value in result.items() if name != "computation"}
            )
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self._is_quiet  # damaged, unless somebody is writing it
        return folder_of(handle) not in self.kept

    def _is_of_no_version(self, signature: Entry) -> bool:
        return signature.name.rpartition("/")[0] not in self._signed

    def _is_free(self, lock: str) -> bool:
        with self._storage.try_lock(lock) as is_free:
            return is_free


def _tells(entry: Entry, gone: set[str]) -> bool:
    """Whether `entry` is the record of a computation that stays."""
    return (
        entry.name.startswith("computations/")
        and entry.name.endswith(".json")
        and entry.name not in gone
    )


def _writer_of(name: str) -> int | None:
    """The process whose temporary file or folder is called `name`; None if that is no temporary
    name.
    """
    match = SCRATCH.fullmatch(name)
    return int(match[1]) if match else writer_of(name)


def _is_of_the_dead(name: str) -> bool:
    """Whether `name` is that of a temporary file or folder whose process has ended."""
    writer = _writer_of(name)
    if writer is None:
        return False
    try:
        os.kill(writer, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _policy(store: Store, run: str) -> RetentionConfig:
    """The policy in the run's last config; all is kept where none can be read."""
    try:
        content = json_value(store.storage.read(f"runs/{run}/config.json"))
        return RetentionConfig.model_validate(content.get("retention", {}))
    except (OSError, ValueError, AttributeError):
        return RetentionConfig()
