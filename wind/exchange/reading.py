"""Reading a store from Python: versions by name, and their datasets as lazy polars frames.

    >>> import wind
    >>> version = wind.open("store").version("demo@latest")
    >>> version.rewards.group_by("prompt_id").agg(pl.col("reward").max()).collect()

A dataset is a `polars.LazyFrame` and so goes wherever one goes; `.arrow()` gives the same rows as a
pyarrow dataset, `.to_hf()` as a Hugging Face one. Nothing is read before it is collected, and
nothing here writes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset

from wind.errors import ConfigError, DatasetError, first_line
from wind.store.datasets import Store
from wind.store.handles import Dataset, Manifest, Model, folder_of, label
from wind.store.references import find_dataset, find_version
from wind.store.schemas import find_declaration
from wind.store.storage import LocalStorage
from wind.store.versions import Version, Versions, runs

if TYPE_CHECKING:
    import datasets
    from polars._plr import PyLazyFrame

__all__ = ["ModelReader", "Rows", "StoreReader", "VersionReader", "open"]


def open(root: Path | str) -> "StoreReader":
    """The store at `root`, for reading. Raises ConfigError if there is none."""
    store = Store(root)
    if not any(store.storage.names(folder) for folder in ("runs", "datasets", "models", "sources")):
        raise ConfigError(f"{root} is not a store: name the `root` of a run")
    return StoreReader(store)


class Rows(pl.LazyFrame):
    """The rows of one dataset: a lazy polars frame in key order, with filters and column choices
    pushed down to the shards.

    What is derived from it by `filter`, `join` and the like is a plain `polars.LazyFrame`.
    """

    handle: Dataset

    def __init__(self, store: Store, handle: Dataset) -> None:
        self.handle = handle
        self._store = store
        self._ldf = _scan(store, handle)._ldf

    @classmethod
    def _from_pyldf(cls, ldf: "PyLazyFrame") -> pl.LazyFrame:
        # Derived rows are no longer those of the handle: they must not offer its manifest, nor
        # themselves as the dataset.
        return pl.LazyFrame._from_pyldf(ldf)

    def __reduce__(self) -> tuple[Any, tuple[str, Dataset]]:
        return _rows, (self._store.address, self.handle)

    @property
    def manifest(self) -> Manifest:
        """What the dataset holds, from what, and how it was computed."""
        return self._store.manifest(self.handle)

    def arrow(self) -> pyarrow.dataset.Dataset:
        """The same rows as a pyarrow dataset, in row order."""
        return self._store.open(self.handle)

    def to_hf(self) -> "datasets.Dataset":
        """The same rows as a Hugging Face dataset: memory-mapped where the store is local, read
        into memory otherwise.

        Its fingerprint is the dataset's own, so that what `map` caches is found again for the same
        content only.
        """
        import datasets

        table = _mapped(self._store, self.handle)
        return datasets.Dataset(
            datasets.table.InMemoryTable(table), fingerprint=self.handle.fingerprint
        )


@dataclass(frozen=True)
class ModelReader:
    """A stored Hugging Face model folder."""

    handle: Model
    _store: Store

    @property
    def path(self) -> Path:
        """The local folder, for `AutoModelForCausalLM.from_pretrained`."""
        return self._store.path(self.handle)

    @property
    def manifest(self) -> Manifest:
        """The model's files, and where it is from."""
        return self._store.manifest(self.handle)


class VersionReader:
    """One dataset version. Each of its datasets is an attribute, `version.generations`, and an
    item, `version["generations"]`.
    """

    def __init__(self, store: Store, version: Version) -> None:
        self._store = store
        self._version = version

    def __repr__(self) -> str:
        return f"<version {self.name}, iteration {self.iteration}, id {self.id[:12]}: {', '.join(self)}>"

    def __iter__(self) -> Iterator[str]:
        return iter(self._version.content.datasets)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __getitem__(self, name: str) -> Rows:
        if name not in self._version.content.datasets:
            raise KeyError(f"{self.name} has no dataset {name!r}: it has {', '.join(self)}")
        return Rows(self._store, self._version.content.datasets[name])

    def __getattr__(self, name: str) -> Rows:
        if name.startswith("_"):  # copy and pickle ask for these before there is a version
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    @property
    def id(self) -> str:
        """The sha256 of what determines the version."""
        return self._version.id

    @property
    def name(self) -> str:
        """RUN@NUMBER."""
        return f"{self._version.run}@{self._version.number}"

    @property
    def iteration(self) -> int:
        """The iteration that made it, from 1."""
        return self._version.content.iteration

    @property
    def recipe(self) -> dict[str, Any]:
        """The config, without paths, names and worker settings."""
        return self._version.content.recipe

    @property
    def models(self) -> Mapping[str, ModelReader]:
        """`model_in`, `model_out` and `reference`."""
        handles = self._version.handles()
        return {
            name: ModelReader(handle, self._store)
            for name, handle in handles.items()
            if isinstance(handle, Model)
        }

    @property
    def previous(self) -> "VersionReader | None":
        """The version before it, None for the first. Raises ConfigError if that is not in the
        store.
        """
        before = self._version.content.previous
        return (
            None
            if before is None
            else VersionReader(self._store, find_version(self._store, before))
        )


class StoreReader:
    """A store: its runs, their versions, and every dataset by name."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"<store {self._store.storage.url}>"

    @property
    def runs(self) -> list[str]:
        """The names of the runs."""
        return runs(self._store)

    def versions(self, run: str) -> list[VersionReader]:
        """The versions of `run` in the order they were published. Raises ConfigError if there is no
        such run.
        """
        if run not in self.runs:
            raise ConfigError(
                f"no run is called {run!r} in {self._store.storage.url} (runs: {', '.join(self.runs) or 'none'})"
            )
        return [VersionReader(self._store, version) for version in Versions(self._store, run)]

    def version(self, name: str) -> VersionReader:
        """The version called RUN, RUN@latest, RUN@3, RUN@TAG, or six digits of its id. Raises
        ConfigError if none is.
        """
        return VersionReader(self._store, find_version(self._store, name))

    def dataset(self, name: str) -> Rows:
        """The dataset called NOUN/DIGITS of its fingerprint, or VERSION:NOUN. Raises ConfigError if
        none is, or several are.
        """
        handle = find_dataset(self._store, name)
        if not isinstance(handle, Dataset):
            raise ConfigError(
                f"{label(handle)} is not a dataset: its files are in {self._store.path(handle)}"
            )
        return Rows(self._store, handle)


def _rows(address: str, handle: Dataset) -> Rows:
    """What a pickled `Rows` becomes."""
    return Rows(Store(address), handle)


def _scan(store: Store, handle: Dataset) -> pl.LazyFrame:
    """The shards as polars scans them: itself from local files, through pyarrow from anywhere else.

    It is told their order, so that what is joined by key is merged, batch by batch, and not hashed,
    which takes all memory.
    """
    if isinstance(store.storage, LocalStorage):
        rows = pl.scan_ipc(
            _shards(store, handle, store.storage), glob=False, hive_partitioning=False
        )
    else:
        rows = pl.scan_pyarrow_dataset(store.open(handle))
    declaration = find_declaration(handle.name)
    return rows if declaration is None else rows.set_sorted(list(declaration.key))


def _mapped(store: Store, handle: Dataset) -> pa.Table:
    """The rows as a table that lies in the shards' own pages where they are local."""
    if not isinstance(store.storage, LocalStorage):
        return store.read(handle)
    try:
        return pa.concat_tables(
            pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            for path in _shards(store, handle, store.storage)
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(
            f"{label(handle)} cannot be read: {first_line(error)}; run `wind verify`"
        ) from error


def _shards(store: Store, handle: Dataset, storage: LocalStorage) -> list[Path]:
    return [
        storage.path(f"{folder_of(handle)}/{file.name}") for file in store.manifest(handle).files
    ]
