"""Task files of lm-evaluation-harness, read without it.

They are YAML. A run reads them before it starts, so that a mistake is told then, and the worker
that asks the questions reads the stored copies, to put local data in place of what a task would
fetch. Only this project's own tasks, those of a folder that the user names, and local data are
used; nothing is looked up in the harness's list of tasks, nor on the Hub.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from wind.errors import ConfigError, first_line
from wind.fingerprints import file_digest

OWN: Final = Path(__file__).with_name("task_files")
# What the library `datasets` reads a file with, by suffix.
BUILDERS: Final[Mapping[str, str]] = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
}
SPLITS: Final = ("test_split", "validation_split", "training_split", "fewshot_split")
# How the name of a file says that it is of a split.
WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
MARK: Final = "!function "


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, for which a function of a task is a text."""


_Loader.add_constructor("!function", lambda loader, node: f"{MARK}{node.value}")


@dataclass(frozen=True)
class TaskFile:
    """The file of one task, with what it includes."""

    setting: str  # of the benchmark in a recipe, for messages
    path: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the task."""
        return str(self.config["task"])

    def shots(self, asked: int | None) -> int:
        """Return the number of shots, `asked` or the task's own.

        Raises ConfigError for shots that the harness would not give.
        """
        own = self.config.get("num_fewshot")
        if own == 0 and asked:
            raise ConfigError(
                f"{self.setting}.shots is {asked}, and the task {self.name} says num_fewshot: 0, "
                "which the harness takes for never: remove that line of its file, or the shots"
            )
        return int(own or 0) if asked is None else asked

    def asked_split(self) -> str:
        """Return the split whose questions are asked. Raises ConfigError if there is none."""
        split = self.config.get("test_split") or self.config.get("validation_split")
        if not isinstance(split, str):
            raise ConfigError(
                f"{self.setting}: the task {self.name} has neither test_split nor "
                "validation_split: add one to its file"
            )
        return split

    def shots_split(self) -> str | None:
        """Return the split that shots are taken from, if the task names one."""
        chosen = self.config.get("fewshot_config")
        chosen = chosen if isinstance(chosen, Mapping) else {}
        split = chosen.get("split") or self.config.get("fewshot_split")
        if split is None and "samples" not in chosen:
            split = self.config.get("training_split")
        return split if isinstance(split, str) else None

    def local(self, data: Sequence[Path], shots: int) -> dict[str, Any]:
        """Return the fields that make the task read local files only.

        `data` are the user's files, if any; they replace whatever dataset the task names. Raises
        ConfigError if a split is missing, or if there are no local files at all.
        """
        found = self._splits(data) if data else self._own_splits()
        asked, from_split = self.asked_split(), self.shots_split()
        for split, purpose in ((asked, "asks"), (from_split, "takes its shots from")):
            if split is not None and split not in found and (split == asked or shots):
                raise ConfigError(
                    f"{self.setting}.data has no file of the split {split}, which the task "
                    f"{self.name} {purpose}: add one whose name says so, such as {split}.jsonl"
                )
        builders = {BUILDERS[path.suffix] for paths in found.values() for path in paths}
        if len(builders) != 1:
            raise ConfigError(
                f"{self.setting}.data has files of several formats: give one, such as .jsonl"
            )
        kept = {key: self.config.get(key) for key in SPLITS}
        return {
            "dataset_path": builders.pop(),
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {name: [str(path) for path in found[name]] for name in sorted(found)}
            },
            "custom_dataset": None,
            **{key: split if split in found else None for key, split in kept.items()},
        }

    def _splits(self, data: Sequence[Path]) -> dict[str, list[Path]]:
        """Return the files of each split that the task names."""
        named = dict.fromkeys(
            split
            for split in (*(self.config.get(key) for key in SPLITS), self.shots_split())
            if isinstance(split, str)
        )
        found = {split: [path for path in data if is_of_split(path, split)] for split in named}
        found = {split: paths for split, paths in found.items() if paths}
        if not found and len(data) == 1:
            return {self.asked_split(): list(data)}
        return found

    def _own_splits(self) -> dict[str, list[Path]]:
        """Return the files beside the task that its `data_files` name."""
        given = (self.config.get("dataset_kwargs") or {}).get("data_files")
        source = self.config.get("dataset_path")
        if not isinstance(given, Mapping) or source not in BUILDERS.values():
            raise ConfigError(
                f"{self.setting}: the task {self.name} needs the dataset {source}, and nothing is "
                f"fetched: set {self.setting}.data to a folder with its files, one for each split, "
                f"such as {self.asked_split()}.jsonl"
            )
        found = {
            str(split): [
                self._beside(name) for name in ([names] if isinstance(names, str) else names)
            ]
            for split, names in given.items()
        }
        return found

    def _beside(self, name: str) -> Path:
        path = self.path.parent / Path(name).name
        if name != path.name or path.suffix not in BUILDERS or not path.is_file():
            raise ConfigError(
                f"{self.setting}: the task {self.name} names the data file {name}, which is no "
                f"{', '.join(BUILDERS)} file beside it: put it there, or set {self.setting}.data"
            )
        return path


def find_task(folder: Path, name: str, setting: str) -> TaskFile:
    """Find the task `name` among the task files in `folder`.

    `setting` names the benchmark in a recipe. Raises ConfigError if there is none, if it is a group
    of tasks, or if it calls a function that is not of a Python file beside it.
    """
    known: list[str] = []
    unread: ConfigError | None = None
    for path in sorted(folder.glob("*.yaml")):
        try:
            config = _content(path, setting)
        except ConfigError as error:
            unread = unread or error
            continue
        if config.get("group") == name or isinstance(config.get("task"), list):
            if name in (config.get("group"), config.get("task")):
                raise ConfigError(
                    f"{setting}.task {name} is a group: name one of its tasks, each as a benchmark"
                )
            continue
        if config.get("task") == name:
            _refuse_foreign(config, folder, f"{setting}: the task {name}")
            return TaskFile(setting, path, config)
        known.append(str(config.get("task")))
    if unread is not None:
        raise unread
    where = "" if folder == OWN else f" in {folder}"
    raise ConfigError(
        f"{setting}: there is no task {name}{where}, only {', '.join(sorted(known)) or 'none'}: "
        f"set {setting}.task, or {setting}.tasks_folder to a folder with its file, such as "
        "lm_eval/tasks/arc of the harness"
    )


def is_of_split(path: Path, split: str) -> bool:
    """Return whether the name of a data file says that it is of `split`."""
    words = re.findall(r"[a-z]+", path.stem.lower())
    return any(word in words for word in WORDS.get(split, (split.lower(),)))


def own_digests() -> frozenset[str]:
    """Return the SHA-256 of each task file of this project."""
    return frozenset(file_digest(path) for path in OWN.iterdir() if path.is_file())


def _content(path: Path, setting: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a task file with the files that it includes.

    As in the harness, its own fields come before those included.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{setting}: {path} cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{setting}: {path} is no task file: it must be a mapping")
    includes = content.pop("include", [])
    whole: dict[str, Any] = {}
    for name in [includes] if isinstance(includes, str) else includes:
        below = path.parent / str(name)
        if Path(str(name)).name != str(name) or below in (*seen, path):
            raise ConfigError(
                f"{setting}: {path} includes {name}: include only other files of the same folder"
            )
        whole |= _content(below, setting, (*seen, path))
    return whole | content


def _refuse_foreign(config: Any, folder: Path, what: str) -> None:
    """Raise ConfigError for a function whose source would not be part of the key."""
    for value in _texts(config):
        module = value.removeprefix(MARK).rpartition(".")[0]
        if (
            value.startswith(MARK)
            and module.partition(".")[0] != "lm_eval"
            and not (folder / f"{module}.py").is_file()
        ):
            raise ConfigError(
                f"{what} calls {value.removeprefix(MARK)}, and {folder} has no {module}.py: "
                "put the function into a Python file beside the task"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)
