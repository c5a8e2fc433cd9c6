"""Exports: stored content in formats that other tools read.

`parquet` is plain Parquet, one file per shard; `hf` a Hugging Face dataset folder of the same rows,
one config per noun, with its card; `model` a Hugging Face model folder with its card. The same
content gives the same bytes, and its checksums are recomputed on the way out. An exported folder
appears only when it is whole. `wind.exchange.archives` writes the single-file archive, and
`wind.exchange.answers` the files of answers that other benchmarks judge.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from wind.errors import ConfigError, DatasetError, first_line
from wind.exchange.cards import dataset_card, model_card
from wind.files import lock, sync_folder
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model, folder_of, label
from wind.store.layout import MODEL_FILES
from wind.store.references import find_dataset, find_version
from wind.store.versions import Version, everywhere

# datasets of the eval split whose names do not say so
HELD_OUT = ("evaluation", "matches", "health", "benchmarks", "metrics", "alarms")


@dataclass(frozen=True)
class Exportable:
    """What a name stands for: a version, a dataset or a model."""

    name: str
    version: Version | None
    datasets: dict[str, Dataset]
    model: Model | None

    @classmethod
    def of(cls, store: Store, name: str) -> "Exportable":
        """Find what `name` stands for: a version, VERSION:NOUN or NOUN/DIGITS.

        Raises ConfigError if there is no such thing.
        """
        if ":" not in name and "/" not in name:
            version = find_version(store, name)
            return cls(
                f"{version.run}@{version.number}",
                version,
                version.content.datasets,
                version.content.model_out,
            )
        handle = find_dataset(store, name)
        if isinstance(handle, Dataset):
            return cls(label(handle), None, {handle.name: handle}, None)
        if not isinstance(handle, Model):
            raise ConfigError(
                f"{label(handle)} is neither a dataset nor a model: its files are in "
                f"{folder_of(handle)}"
            )
        return cls(label(handle), _origin_of(store, handle), {}, handle)


def export_parquet(store: Store, subject: Exportable, destination: Path) -> None:
    """Write the datasets of `subject` as Parquet files.

    A version is written to NOUN/part-00000.parquet, a single dataset to part-00000.parquet.
    """
    _require(subject.datasets, subject, "has no rows: use --format model")
    with appearing(destination) as folder:
        for name, handle in subject.datasets.items():
            _write_shards(store, handle, folder / name if subject.version else folder, "part")


def export_hf(store: Store, subject: Exportable, destination: Path) -> None:
    """Write datasets as a Hugging Face dataset folder with its card.

    `datasets.load_dataset(destination, NOUN)` reads it. The splits are `train` and `eval`: prompts
    are split by their column; an `eval_` dataset, and what is measured on it, is `eval`.
    """
    _require(subject.datasets, subject, "has no rows: use --format model")
    splits: dict[str, dict[str, str]] = {}
    with appearing(destination) as folder:
        for name, handle in subject.datasets.items():
            config, split = _config_of(store, subject, name)
            by_column = ("train", "eval") if "split" in store.open(handle).schema.names else ()
            for each in by_column or (split,):
                where = pc.field("split") == each if by_column else None
                if _write_shards(store, handle, folder / config, each, where):
                    splits.setdefault(config, {})[each] = f"{config}/{each}-*.parquet"
        card = dataset_card(store, subject.name, subject.version, subject.datasets, splits)
        (folder / "README.md").write_text(card, encoding="utf-8")


def export_model(store: Store, subject: Exportable, destination: Path) -> None:
    """Write a model as a Hugging Face folder with its card."""
    _require(subject.model, subject, "is not a model: use --format hf or parquet")
    assert subject.model is not None
    with appearing(destination) as folder:
        folder.mkdir()
        for file in store.manifest(subject.model).files:
            if "/" in file.name or not MODEL_FILES.fullmatch(file.name):
                raise DatasetError(
                    f"{label(subject.model)} names {file.name!r}, which is not a file of a model; "
                    "run `wind verify`"
                )
            with (folder / file.name).open("xb") as copy:
                for chunk in checked_chunks(
                    store, f"{folder_of(subject.model)}/{file.name}", file.bytes, file.sha256
                ):
                    copy.write(chunk)
        (folder / "README.md").write_text(
            model_card(store, subject.name, subject.version, subject.model), encoding="utf-8"
        )


def checked_chunks(store: Store, name: str, size: int, sha256: str) -> Iterator[bytes]:
    """Yield the chunks of a stored file, checking size and sha256.

    Raises DatasetError, before the first chunk or after the last, if the file differs from its
    manifest.
    """
    where = f"{store.storage.url}/{name}"
    found = store.storage.size(name)
    if found != size:
        wrong = "is missing" if found is None else f"has {found} bytes, not {size}"
        raise DatasetError(f"{where} {wrong}; run `wind verify`")
    hasher = hashlib.sha256()
    for chunk in store.storage.chunks(name):
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != sha256:
        raise DatasetError(
            f"{where} does not have the sha256 of its manifest: its content was changed"
        )


@contextlib.contextmanager
def appearing(destination: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `destination` after the block.

    The block makes a file or a folder of it.

    When the block ends, everything is synced and appears with one rename. What a killed process
    left under the temporary path is removed first. Raises ConfigError if `destination` exists and
    is not empty.
    """
    destination = destination.absolute()
    if destination.name in ("", ".."):
        raise ConfigError(f"{destination} cannot be written: name a new folder or file")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    held = destination.with_name(f".{destination.name}.lock")
    with lock(held):
        try:
            is_folder = destination.is_dir() and not destination.is_symlink()
            if os.path.lexists(destination) and not (is_folder and not any(destination.iterdir())):
                raise ConfigError(f"{destination} already exists: remove it or name another")
            _remove(partial)
            yield partial
            _sync(partial)
            if destination.is_dir() and partial.is_file():
                destination.rmdir()
            os.replace(partial, destination)
            sync_folder(destination.parent)
        finally:
            _remove(partial)
            held.unlink(missing_ok=True)


def _origin_of(store: Store, model: Model) -> Version | None:
    """Find a version that produced `model`, if there is one."""
    return next(
        (version for version in everywhere(store) if version.content.model_out == model), None
    )


def _require(wanted: object, subject: Exportable, otherwise: str) -> None:
    if not wanted:
        raise ConfigError(f"{subject.name} {otherwise}")


def _config_of(store: Store, subject: Exportable, name: str) -> tuple[str, str]:
    """Return the config and the split of the dataset `name`.

    An `eval_` dataset shares the config of its twin for training if both have the same columns.
    """
    twin = name.removeprefix("eval_")
    if twin == name:
        return name, "eval" if name in HELD_OUT else "train"
    shares = twin not in subject.datasets or store.open(subject.datasets[twin]).schema.equals(
        store.open(subject.datasets[name]).schema
    )
    return twin if shares else name, "eval"


def _write_shards(
    store: Store, handle: Dataset, folder: Path, prefix: str, where: pc.Expression | None = None
) -> int:
    """Write the rows that meet `where`, one file per shard.

    Returns the number of files written.

    A shard without such rows gets no file.
    """
    manifest = store.verify(handle)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "wind.dataset": handle.name,
        "wind.fingerprint": handle.fingerprint,
        "wind.schema": str(manifest.schema_version),
    }
    written = 0
    for index in range(len(manifest.files)):
        shard = store.open(handle, index)
        if where is not None and not shard.count_rows(filter=where):
            continue
        schema = shard.schema.with_metadata(facts)
        path = folder / f"{prefix}-{index:05d}.parquet"
        try:
            with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
                for batch in shard.to_batches(filter=where):
                    writer.write_batch(batch.replace_schema_metadata(facts))
        except pa.ArrowInvalid as error:
            raise DatasetError(
                f"{label(handle)} cannot be read: {first_line(error)}; run `wind verify`"
            ) from error
        written += 1
    return written


def _sync(path: Path) -> None:
    """Flush a file, or everything in a folder, to disk."""
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if each.is_dir():
            sync_folder(each)
        else:
            with each.open("rb") as file:
                os.fsync(file.fileno())


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
