"""Stored folders as a collection sees them, and what they name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from wind.errors import DatasetError
from wind.store.datasets import Store
from wind.store.handles import FINGERPRINT, Manifest, Model, folder_of
from wind.store.layout import MANIFEST, WEIGHTS
from wind.store.storage import Entry, Storage

DEPTHS = {"datasets": 3, "models": 2, "sources": 2}  # parts of the name of a folder in each tree


class Manifests:
    """The stored manifests, each read once unless its file has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[Entry, Manifest | None] = {}

    def of(self, entry: Entry) -> Manifest | None:
        """Return the manifest in `entry`, or None if it is unreadable."""
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
    """A stored dataset, model or source, as far as it is present."""

    name: str
    files: list[Entry] = field(default_factory=list)
    manifest: Manifest | None = None

    def bytes(self) -> int:
        """Return the size of the files that are present."""
        return sum(entry.bytes for entry in self.files)

    def names(self) -> list[str]:
        """Return the folders of the parents and outputs in its manifest."""
        if self.manifest is None:
            return []
        handles = (*self.manifest.parents.values(), *self.manifest.outputs.values())
        return [folder_of(handle) for handle in handles]

    def weights(self) -> list[Entry]:
        """Return the files that hold weights."""
        return [entry for entry in self.files if entry.name.endswith(WEIGHTS)]


class Folders:
    """All stored folders by name, and the stray files beside them."""

    def __init__(self, storage: Storage, manifests: Manifests) -> None:
        self.by_name: dict[str, Folder] = {}
        self.strays: list[Entry] = []
        for tree, depth in DEPTHS.items():
            for entry in storage.files(tree):
                parts = entry.name.split("/")
                if len(parts) == depth + 1 and FINGERPRINT.fullmatch(parts[depth - 1]):
                    name = "/".join(parts[:depth])
                    folder = self.by_name.setdefault(name, Folder(name))
                    folder.files.append(entry)
                    if parts[depth] == MANIFEST:
                        folder.manifest = manifests.of(entry)
                else:
                    self.strays.append(entry)

    def reached(self, roots: Mapping[str, str | None]) -> set[str]:
        """Return `roots` and every folder that their manifests lead to.

        Each root comes with who needs it, or None where something may be missing. Raises
        DatasetError for a needed folder without a readable manifest: what else is needed is
        unknown.
        """
        reached: set[str] = set()
        waiting = list(roots.items())
        while waiting:
            name, owner = waiting.pop()
            if name in reached:
                continue
            reached.add(name)
            folder = self.by_name.get(name)
            if owner and (folder is None or folder.manifest is None):
                raise DatasetError(
                    f"{owner} needs {name}, whose manifest is missing or damaged, "
                    "so that what else it needs is unknown: run its recipe again, which heals it, "
                    "or `wind forget` it, and collect then; nothing was removed"
                )
            waiting += [(below, owner) for below in folder.names()] if folder else []
        return reached

    def outside(self, kept: set[str]) -> list[Folder]:
        """Return the folders not in `kept`, each before those it names."""
        waiting = {name: folder for name, folder in self.by_name.items() if name not in kept}
        named_by = Counter(
            name for folder in waiting.values() for name in set(folder.names()) - {folder.name}
        )
        ready = [name for name in waiting if not named_by[name]]
        ordered = []
        while waiting:
            # Nothing is ready only where manifests were edited into a circle.
            name = ready.pop() if ready else next(iter(waiting))
            if (folder := waiting.pop(name, None)) is None:
                continue
            ordered.append(folder)
            for below in set(folder.names()) - {name}:
                named_by[below] -= 1
                if not named_by[below]:
                    ready.append(below)
        return ordered

    def models_below(self, names: list[str]) -> Iterator[str]:
        """Yield the models among all outputs of the folders called `names`."""
        waiting = list(names)
        while waiting:
            folder = self.by_name.get(waiting.pop())
            for output in folder.manifest.outputs.values() if folder and folder.manifest else ():
                if isinstance(output, Model):
                    yield folder_of(output)
                else:
                    waiting.append(folder_of(output))
