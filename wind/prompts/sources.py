"""Import prompts from files, folders of the `datasets` library, or the Hub.

All sources are copied into the store before they are read. A source is one or more JSONL, Parquet
or Arrow files.
"""

import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from wind.config.prompts import PromptsConfig
from wind.errors import ConfigError
from wind.files import NotPlainError, read_plain
from wind.nesting import json_value
from wind.prompts.rows import READERS
from wind.prompts.splits import KEYWORDS, by_split
from wind.redaction import without_home
from wind.store.datasets import Store
from wind.store.handles import Source
from wind.store.imports import import_source
from wind.store.provenance import provenance

ACCEPTED = "a .jsonl, .parquet or .arrow file, a `datasets` folder, or a Hub dataset id"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")


def import_prompts(store: Store, config: PromptsConfig) -> Source:
    """Copy the prompts that `config.source` names into the store.

    A Hub dataset becomes one Parquet file of its resolved commit. This only copies: the stage that
    reads the content checks it. Raises ConfigError if there is nothing to copy, or if `revision`,
    `subset` or `source_split` do not fit the kind of source.
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
    """Copy a file, or a folder's data files, into the store.

    Links in the folder must not lead outside of it.
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
    # a file that the user names may itself be a link
    within = path if path.is_dir() else None
    return import_source(
        store, paths, within, provenance={"origin": origin, **provenance(store, started)}
    )


def _refuse(config: PromptsConfig, *settings: str) -> None:
    """Raise ConfigError if one of `settings` is given but would be ignored."""
    for name in settings:
        if getattr(config, name) is not None:
            kinds = "a folder or a Hub dataset" if name == "source_split" else "a Hub dataset"
            raise ConfigError(
                f"prompts.{name} is for {kinds}, which {config.source} is not: leave it out"
            )


def _folder_files(folder: Path, config: PromptsConfig) -> list[Path]:
    """Return the data files of a folder.

    It is a saved `Dataset`, one split of a saved `DatasetDict`, or data files side by side.
    """
    if (folder / "dataset_dict.json").exists():
        split = _only_split(config, _listed(folder / "dataset_dict.json", "splits", folder))
        return _saved_files(folder / str(split), folder)
    if (folder / "state.json").exists():
        _refuse(config, "source_split")
        return _saved_files(folder, folder)
    return _files_of_split(folder, config)


def _saved_files(folder: Path, within: Path) -> list[Path]:
    """Return the data files that a saved `Dataset` lists.

    A cache of `map` or `filter` may lie beside them and is not part of it.
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
    """Return the data files of the requested or only split."""
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
    """Return `paths`, which are copied under their bare names.

    Raises ConfigError if two have the same name.
    """
    name, count = Counter(path.name for path in paths).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"prompts.source {folder} holds {count} files called {name}: "
            "rename them, or name one of their folders"
        )
    return paths


def _listed(path: Path, key: str, within: Path) -> list[Any]:
    """Return the list under `key` of a JSON file written by `save_to_disk`.

    The file must lie within the folder `within`.
    """
    try:
        listed = json_value(read_plain(path, within))[key]
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: save the dataset again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} was not written by save_to_disk of `datasets` ({error!r}): "
            "save the dataset again"
        ) from error
    if not isinstance(listed, list):
        raise ConfigError(
            f"{path} was not written by save_to_disk of `datasets` ({key} is not a list): "
            "save the dataset again"
        )
    return listed


def _only_split(config: PromptsConfig, splits: list[str]) -> str:
    """Return the requested split, or the only one."""
    if config.source_split is None and len(splits) == 1:
        return splits[0]
    if config.source_split not in splits:
        given = "is not set" if config.source_split is None else f"is {config.source_split!r}"
        raise ConfigError(
            f"prompts.source_split {given}: {config.source} has the splits {', '.join(splits)}"
        )
    return config.source_split


def _import_from_hub(store: Store, config: PromptsConfig, started: float) -> Source:
    """Return the stored copy of a Hub dataset.

    Its provenance has its name, the requested revision, and the resolved commit.
    """
    # heavy, and needed only for Hub sources
    import datasets
    from httpx import HTTPError
    from huggingface_hub import HfApi

    name = config.source
    try:
        # A full commit needs no request to the Hub, so that a cached dataset can be imported
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
            f"prompts.source {name} is not a local file and cannot be loaded from the Hub "
            f"({reason[:300]})"
        ) from error
    scratch = store.scratch("sources")
    words = [name.replace("/", "-"), *([config.subset] if config.subset else []), split]
    path = scratch / f"{'-'.join(words)}.parquet"
    rows.to_parquet(path)
    origin = {
        "hub": name,
        "revision": config.revision,
        "commit": commit,
        "subset": config.subset,
        "split": split,
    }
    source = import_source(
        store, [path], provenance={"origin": origin, **provenance(store, started)}
    )
    path.unlink()
    scratch.rmdir()
    return source
