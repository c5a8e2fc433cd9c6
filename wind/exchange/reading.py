"""Reading a store from Python: versions, and datasets as polars frames.

    >>> import polars as pl
    >>> import wind
    >>> version = wind.open("store").version("demo@latest")
    >>> best = version.rewards.group_by("prompt_id").agg(pl.col("reward").max())
    >>> best.sort("prompt_id").collect()["reward"].to_list()
    [4.0, 5.0]

A dataset is a `polars.LazyFrame` and can be used wherever one can; `.arrow()` gives the same rows
as a pyarrow dataset, `.to_hf()` as a Hugging Face one. Nothing is read before it is collected, and
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

__all__ = ["DatasetFrame", "ModelReader", "StoreReader", "VersionReader", "open"]


def open(root: Path | str) -> "StoreReader":
    """Open the store at `root`, a folder or a URL, for reading.

    >>> wind.open("store").runs
    ['demo']

    Raises ConfigError if there is no store.
    """
    store = Store(root)
    if not any(store.storage.names(folder) for folder in ("runs", "datasets", "models", "sources")):
        raise ConfigError(f"{root} is not a store: name the `root` of a run")
    return StoreReader(store)


class DatasetFrame(pl.LazyFrame):
    """The rows of one dataset: a lazy polars frame, sorted by key.

    >>> rewards = wind.open("store").version("demo@latest").rewards
    >>> rewards.filter(pl.col("reward") > 3).select("sample_index", "reward").collect().rows()
    [(1, 4.0), (1, 5.0)]
    >>> rewards.manifest.numbers
    {'mean_reward': 3.5}
    >>> rewards.arrow().count_rows()
    4

    Filters and column choices are pushed down to the shards. What `filter`, `join` and the like
    return is a plain `polars.LazyFrame`.
    """

    handle: Dataset

    def __init__(self, store: Store, handle: Dataset) -> None:
        self.handle = handle
        self._store = store
        self._ldf = _scan(store, handle)._ldf

    @classmethod
    def _from_pyldf(cls, ldf: "PyLazyFrame") -> pl.LazyFrame:
        # Derived rows are no longer those of the handle: they must not offer its manifest, or
        # pass for the dataset itself.
        return pl.LazyFrame._from_pyldf(ldf)

    def __reduce__(self) -> tuple[Any, tuple[str, Dataset]]:
        return _unpickled, (self._store.address, self.handle)

    @property
    def manifest(self) -> Manifest:
        """The manifest: content, parents, and how the dataset was computed."""
        return self._store.manifest(self.handle)

    def arrow(self) -> pyarrow.dataset.Dataset:
        """Return the same rows as a pyarrow dataset, in the same order."""
        return self._store.open(self.handle)

    def to_hf(self) -> "datasets.Dataset":
        """Return the same rows as a Hugging Face dataset.

        It is memory-mapped where the store is local and read into memory otherwise. Its fingerprint
        is the dataset's own, so the cache of `map` is reused for the same content only.
        """
        import datasets

        table = _mapped(self._store, self.handle)
        return datasets.Dataset(
            datasets.table.InMemoryTable(table), fingerprint=self.handle.fingerprint
        )


@dataclass(frozen=True)
class ModelReader:
    """A stored Hugging Face model folder.

    >>> model = wind.open("store").version("demo@latest").models["model_out"]
    >>> sorted(path.name for path in model.path.glob("*.safetensors"))
    ['model.safetensors']
    >>> model.handle.parameters
    4
    """

    handle: Model
    _store: Store

    @property
    def path(self) -> Path:
        """The local folder, as `AutoModelForCausalLM.from_pretrained` takes it."""
        return self._store.path(self.handle)

    @property
    def manifest(self) -> Manifest:
        """The manifest: the model's files, and its origin."""
        return self._store.manifest(self.handle)


class VersionReader:
    """A dataset version; its datasets are attributes and items.

    >>> version = wind.open("store").version("demo@2")
    >>> version.generations.select("response").collect()["response"].to_list()
    ['a20', 'a21', 'b20', 'b21']
    >>> version["eval_generations"].handle.rows
    2
    >>> version.iteration, version.previous.name, version.recipe["objective"]["beta"]
    (2, 'demo@1', 0.1)
    """

    def __init__(self, store: Store, version: Version) -> None:
        self._store = store
        self._version = version

    def __repr__(self) -> str:
        datasets = ", ".join(self)
        return f"<version {self.name}, iteration {self.iteration}, id {self.id[:12]}: {datasets}>"

    def __iter__(self) -> Iterator[str]:
        return iter(self._version.content.datasets)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __getitem__(self, name: str) -> DatasetFrame:
        if name not in self._version.content.datasets:
            raise KeyError(f"{self.name} has no dataset {name!r}: it has {', '.join(self)}")
        return DatasetFrame(self._store, self._version.content.datasets[name])

    def __getattr__(self, name: str) -> DatasetFrame:
        if name.startswith("_"):  # copy and pickle ask for these before there is a version
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    @property
    def id(self) -> str:
        """The id of the version: the sha256 of everything that determines it."""
        return self._version.id

    @property
    def name(self) -> str:
        """RUN@NUMBER."""
        return f"{self._version.run}@{self._version.number}"

    @property
    def iteration(self) -> int:
        """The iteration that produced it, counted from 1."""
        return self._version.content.iteration

    @property
    def recipe(self) -> dict[str, Any]:
        """The config, without paths, names and worker settings."""
        return self._version.content.recipe

    @property
    def models(self) -> Mapping[str, ModelReader]:
        """The models of the version: `model_in`, `model_out` and `reference`."""
        handles = self._version.handles()
        return {
            name: ModelReader(handle, self._store)
            for name, handle in handles.items()
            if isinstance(handle, Model)
        }

    @property
    def previous(self) -> "VersionReader | None":
        """The version before it; None for the first.

        Raises ConfigError if that version is not in the store.
        """
        before = self._version.content.previous
        return (
            None
            if before is None
            else VersionReader(self._store, find_version(self._store, before))
        )


class StoreReader:
    """A store: its runs, their versions, and every dataset by name.

    >>> store = wind.open("store")
    >>> [version.name for version in store.versions("demo")]
    ['demo@1', 'demo@2']
    >>> store.version("demo").name
    'demo@2'
    >>> store.dataset("demo@1:rewards").collect()["reward"].to_list()
    [1.0, 3.0, 2.0, 0.0]
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"<store {self._store.storage.url}>"

    @property
    def runs(self) -> list[str]:
        """The names of the runs."""
        return runs(self._store)

    def versions(self, run: str) -> list[VersionReader]:
        """List the versions of `run` in the order they were published.

        Raises ConfigError if there is no such run.
        """
        if run not in self.runs:
            raise ConfigError(
                f"no run is called {run!r} in {self._store.storage.url} "
                f"(runs: {', '.join(self.runs) or 'none'})"
            )
        return [VersionReader(self._store, version) for version in Versions(self._store, run)]

    def version(self, name: str) -> VersionReader:
        """Find a version by name: RUN, RUN@latest, RUN@3, RUN@TAG.

        Six digits of its id will do as well.

        Raises ConfigError if there is none.
        """
        return VersionReader(self._store, find_version(self._store, name))

    def dataset(self, name: str) -> DatasetFrame:
        """Find a dataset by NOUN/DIGITS of its fingerprint, or by VERSION:NOUN.

        Raises ConfigError if there is none, or more than one.
        """
        handle = find_dataset(self._store, name)
        if not isinstance(handle, Dataset):
            raise ConfigError(
                f"{label(handle)} is not a dataset: its files are in {self._store.path(handle)}"
            )
        return DatasetFrame(self._store, handle)


def _unpickled(address: str, handle: Dataset) -> DatasetFrame:
    return DatasetFrame(Store(address), handle)


def _scan(store: Store, handle: Dataset) -> pl.LazyFrame:
    """Scan the shards: natively from local files, through pyarrow from anywhere else.

    The frame is marked as sorted, so polars joins by key with a merge, batch by batch. A hash join
    would hold a whole side in memory.
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
    """Return the rows as a table, memory-mapped from local shards.

    Shards that are not local are read into memory.
    """
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
