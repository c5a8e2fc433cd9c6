"""Where prompts come from: files, folders of the `datasets` library, the Hub. All are copied into
the store before they are read.

A source is one or more JSONL, Parquet or Arrow files, and its rows are read in the order of the
file names. Whatever is wrong with a row is said in one line with the file and the 1-based line
(JSONL) or row (Parquet, Arrow).
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from wind.config.prompts import PromptsConfig
from wind.errors import ConfigError, InputError, first_line
from wind.files import NotPlainError, read_plain
from wind.nesting import json_value
from wind.prompts.splits import KEYWORDS, by_split
from wind.redaction import without_home
from wind.store.datasets import Store
from wind.store.handles import Source
from wind.store.provenance import provenance

ACCEPTED = "a .jsonl, .parquet or .arrow file, a `datasets` folder, or a Hub dataset id"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
BATCH_ROWS = 1024
LONGEST_LINE = 64 * 2**20  # bytes of a row: a file without line ends would be read at once


@dataclass(frozen=True)
class Row:
    """One row of a source, and where it stands there: `prompts.jsonl line 3`."""

    where: str
    fields: dict[str, Any]
    # of a file whose rows all have the same fields: null is how it writes an absent one
    is_columnar: bool = False


def import_prompts(store: Store, config: PromptsConfig) -> Source:
    """The stored copy of what `config.source` names; of a Hub dataset, one Parquet file of its
    resolved commit.

    Only copies: content is judged by the stage that reads it. Raises ConfigError if there is
    nothing to copy, or if `revision`, `subset` or `source_split` do not fit the kind of source.
    """
    started = time.time()
    path = Path(config.source)
    if not path.exists():
        if path.suffix in READERS or not HUB_ID.fullmatch(config.source):
            raise ConfigError(f"prompts.source {path.absolute()} does not exist: give {ACCEPTED}")
        return _import_from_hub(store, config, started)
    _refuse(config, "revision", "subset")
    try:
        return _import_files(store, config, path, started)
    except NotPlainError as error:
        raise ConfigError(f"prompts.source {error}") from error


def _import_files(store: Store, config: PromptsConfig, path: Path, started: float) -> Source:
    """The stored copy of a file, or of the data files of a folder, whose links lead to nothing
    outside of it.
    """
    if path.is_dir():
        paths = _folder_files(path, config)
    else:
        _refuse(config, "source_split")
        paths = [path]
    unsupported = [file for file in paths if file.suffix not in READERS]
    if unsupported:
        raise ConfigError(
            f"prompts.source {unsupported[0]} is none of {', '.join(READERS)}: give {ACCEPTED}"
        )
    unreadable = [file for file in paths if not os.access(file, os.R_OK)]
    if unreadable:
        raise ConfigError(f"prompts.source {unreadable[0]} may not be read: check its permissions")
    origin = {"path": without_home(config.source)}
    within = path if path.is_dir() else None  # a file that the user names may itself be a link
    return store.import_source(
        paths, within, provenance={"origin": origin, **provenance(store, started)}
    )


def read_rows(store: Store, source: Source, field: str, limit: int | None) -> list[Row]:
    """The first `limit` rows of `source`, each with the column `field`, in the order of file names
    and of rows in them.

    Raises InputError, naming file and line, if a file or a row cannot be read, a row lacks `field`,
    or there are no rows at all.
    """
    rows: list[Row] = []
    names = sorted(file.name for file in store.manifest(source).files)
    for name in names:
        for row in READERS[Path(name).suffix](store.path(source) / name):
            if field not in row.fields:
                has = ", ".join(row.fields) or "none"
                raise InputError(
                    f"{row.where} has no field {field!r}: name one of its fields with prompts.field ({has})"
                )
            rows.append(row)
            if len(rows) == limit:
                return rows
    if not rows:
        raise InputError(
            f"{', '.join(names)} holds no rows: give prompts.source with at least two prompts"
        )
    return rows


def _refuse(config: PromptsConfig, *settings: str) -> None:
    """Raise ConfigError if one of `settings` is given, since a source of this kind would ignore it."""
    for name in settings:
        if getattr(config, name) is not None:
            kinds = "a folder or a Hub dataset" if name == "source_split" else "a Hub dataset"
            raise ConfigError(
                f"prompts.{name} is for {kinds} and {config.source} is none: leave it out"
            )


def _folder_files(folder: Path, config: PromptsConfig) -> list[Path]:
    """The data files of a folder: a saved `Dataset`, one split of a saved `DatasetDict`, or data
    files side by side.
    """
    if (folder / "dataset_dict.json").exists():
        split = _only_split(config, _listed(folder / "dataset_dict.json", "splits", folder))
        return _saved_files(folder / str(split), folder)
    if (folder / "state.json").exists():
        _refuse(config, "source_split")
        return _saved_files(folder, folder)
    return _files_of_split(folder, config)


def _saved_files(folder: Path, within: Path) -> list[Path]:
    """The data files of a saved `Dataset`, named one by one: a cache of `map` or `filter` may lie
    there and is no part of it.
    """
    entries = _listed(folder / "state.json", "_data_files", within)
    files = [
        folder / str(entry["filename"])
        for entry in entries
        if isinstance(entry, dict) and "filename" in entry
    ]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        what = f"lacks {missing[0]}" if missing else f"holds no {', '.join(READERS)} file"
        raise ConfigError(f"prompts.source {folder} {what}: give {ACCEPTED}")
    return files


def _files_of_split(folder: Path, config: PromptsConfig) -> list[Path]:
    """The data files of the split that is asked for, or all of them where no more than one split is
    there.
    """
    found = by_split(folder, tuple(READERS))
    if not found:
        raise ConfigError(
            f"prompts.source {folder} holds no {', '.join(READERS)} file: give {ACCEPTED}"
        )
    splits = sorted(split for split in found if split is not None)
    if config.source_split is not None:
        asked = KEYWORDS.get(config.source_split, config.source_split)
        if asked not in splits:
            has = (
                f"has the splits {', '.join(splits)}" if splits else "has files that name no split"
            )
            raise ConfigError(f"prompts.source_split is {config.source_split!r}: {folder} {has}")
        return _with_own_names(found[asked], folder)
    if len(splits) > 1:
        raise ConfigError(
            f"prompts.source_split is not set: {folder} has the splits {', '.join(splits)}"
        )
    if len(found) > 1:
        has = f"has the split {splits[0]} and files of none, such as {found[None][0].name}"
        raise ConfigError(f"prompts.source_split is not set: {folder} {has}")
    return _with_own_names([path for paths in found.values() for path in paths], folder)


def _with_own_names(paths: list[Path], folder: Path) -> list[Path]:
    """`paths`, which are copied under their names alone. Raises ConfigError if two have the same."""
    name, count = Counter(path.name for path in paths).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"prompts.source {folder} holds {count} files called {name}: rename them, or name one of their folders"
        )
    return paths


def _listed(path: Path, key: str, within: Path) -> list[Any]:
    """The list under `key` of a JSON file that `save_to_disk` wrote below the folder `within`."""
    try:
        listed = json_value(read_plain(path, within))[key]
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: save the dataset again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not what save_to_disk of `datasets` writes ({error!r}): save the dataset again"
        ) from error
    if not isinstance(listed, list):
        raise ConfigError(
            f"{path} is not what save_to_disk of `datasets` writes ({key} is no list): save the dataset again"
        )
    return listed


def _only_split(config: PromptsConfig, splits: list[str]) -> str:
    """The split that is asked for, or the only one there is."""
    if config.source_split is None and len(splits) == 1:
        return splits[0]
    if config.source_split not in splits:
        given = "is not set" if config.source_split is None else f"is {config.source_split!r}"
        raise ConfigError(
            f"prompts.source_split {given}: {config.source} has the splits {', '.join(splits)}"
        )
    return config.source_split


def _import_from_hub(store: Store, config: PromptsConfig, started: float) -> Source:
    """The stored copy of a Hub dataset; its provenance has its name, the revision asked for, and
    the commit that this was.
    """
    import datasets  # heavy, and only Hub sources need it
    from httpx import HTTPError
    from huggingface_hub import HfApi

    name = config.source
    try:
        # A full commit needs no question to the Hub, so that a cached dataset can be imported
        # offline.
        is_commit = config.revision is not None and COMMIT.fullmatch(config.revision)
        commit = (
            config.revision
            if is_commit
            else HfApi().dataset_info(name, revision=config.revision).sha
        )
        splits = datasets.get_dataset_split_names(name, config.subset, revision=commit)
        split = _only_split(config, splits)
        rows = datasets.load_dataset(name, config.subset, split=split, revision=commit)
    except ConfigError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        HTTPError,
        datasets.exceptions.DatasetsError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"prompts.source {name} is no file here and cannot be had from the Hub ({reason[:300]})"
        ) from error
    scratch = store.scratch("sources")
    path = (
        scratch
        / f"{'-'.join([name.replace('/', '-'), *([config.subset] if config.subset else []), split])}.parquet"
    )
    rows.to_parquet(path)
    origin = {
        "hub": name,
        "revision": config.revision,
        "commit": commit,
        "subset": config.subset,
        "split": split,
    }
    source = store.import_source(
        [path], provenance={"origin": origin, **provenance(store, started)}
    )
    path.unlink()
    scratch.rmdir()
    return source


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            where = f"{path.name} line {number}"
            if len(line) > LONGEST_LINE:
                raise InputError(
                    f"{where} has more than {LONGEST_LINE // 2**20} MiB: one object per line is needed"
                )
            if line.strip():
                text = line.rstrip(b"\r\n")
                yield Row(
                    where,
                    _json_object(
                        text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text, where
                    ),
                )


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    """The object that one line spells. Raises InputError if it is anything else, or text that UTF-8
    cannot carry.
    """
    try:
        fields = json_value(line, parse_constant=_no_number)
        if b"\\u" in line:
            # half a surrogate pair is valid JSON and no text
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 (byte {error.start + 1} of the line): convert the file"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} escapes half of a surrogate pair, which is no character: correct it"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON ({error.msg} at character {error.pos + 1}): one object per line is needed"
        ) from error
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): one object per line is needed") from error
    if not isinstance(fields, dict):
        raise InputError(f'{where} is not a JSON object: write it as {{"prompt": ...}}')
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            yield from _batch_rows(path, file.iter_batches(batch_size=BATCH_ROWS))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read as Parquet: {first_line(error)}") from error


def _read_arrow(path: Path) -> Iterator[Row]:
    """Rows of an Arrow IPC file, or of an IPC stream, which is what `datasets` writes under the
    same suffix.
    """
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                with pa.ipc.open_file(source) as reader:
                    yield from _batch_rows(
                        path,
                        (reader.get_batch(index) for index in range(reader.num_record_batches)),
                    )
            else:
                source.seek(0)
                with pa.ipc.open_stream(source) as reader:
                    yield from _batch_rows(path, reader)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read as Arrow: {first_line(error)}") from error


def _batch_rows(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for fields in _in_doubles(batch.slice(start, BATCH_ROWS)).to_pylist():
                number += 1
                yield Row(f"{path.name} row {number}", fields, is_columnar=True)


def _in_doubles(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with narrower floats as the double of their own shortest digits: a float32 0.1 is
    0.1, not 0.10000000149011612.
    """
    for place, column in enumerate(batch.schema):
        doubles = _with_floats(column.type, pa.float64())
        if doubles != column.type:
            values = batch.column(place)
            for number in (pa.float32(), pa.string()):
                values = values.cast(_with_floats(column.type, number))
            batch = batch.set_column(place, column.name, values.cast(doubles))
    return batch


def _with_floats(kind: pa.DataType, number: pa.DataType) -> pa.DataType:
    """The type `kind` with `number` in place of floats narrower than doubles, also within lists and
    structs.
    """
    if kind in (pa.float16(), pa.float32()):
        return number
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_floats(field.type, number)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        items = _with_floats(kind.value_type, number)
        return kind if items == kind.value_type else pa.list_(items)
    return kind


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
