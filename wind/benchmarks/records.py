"""Benchmarks as a spec holds them, without any path.

Task files and data files are copied into the store first, so that their content is part of the key.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from wind.benchmarks.questions import read_questions
from wind.benchmarks.tasks import BUILDERS, OWN, find_task, own_digests
from wind.config.base import CodeFile, Section
from wind.config.benchmarks import (
    AlpacaEvalConfig,
    BenchmarkConfig,
    HarnessBenchmarkConfig,
    HarnessSettings,
    MtBenchConfig,
)
from wind.errors import ConfigError, first_line
from wind.files import NotPlainError
from wind.machine import processes
from wind.redaction import without_home
from wind.rewards import Reward
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Source
from wind.store.imports import import_source

# the release that this project was tested with, as in the extra `benchmarks`
HARNESS: Final = "lm-eval[hf]==0.4.13"
ASK_VERSION: Final = "from importlib.metadata import version; print(version('lm-eval'))"
# an interpreter on a cold network disk may take this long to start
START_SECONDS: Final = 120.0


class HarnessBenchmark(HarnessSettings):
    """A task of lm-evaluation-harness, with its stored files."""

    kind: Literal["harness"] = "harness"
    task: str
    tasks: Source
    # the task files that are not this project's own: they run as code
    task_files: tuple[CodeFile, ...] = ()
    # None: the data files lie among the task files
    data: Source | None = None
    # the version of lm-evaluation-harness
    harness: str

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs."""
        return {"tasks": self.tasks, **({} if self.data is None else {"data": self.data})}


class ChatBenchmark(Section):
    """Questions that a policy answers in chat, with their stored file."""

    kind: Literal["mt_bench", "alpaca_eval"]
    data: Source
    judge: Reward | None = None
    limit: int | None = None
    max_new_tokens: int

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs, those of the judge among them."""
        of_judge = {} if self.judge is None else self.judge.parents()
        return {"data": self.data, **{f"judge_{name}": each for name, each in of_judge.items()}}


Benchmark = Annotated[HarnessBenchmark | ChatBenchmark, Field(discriminator="kind")]


def resolve_benchmarks(
    store: Store,
    configs: Mapping[str, BenchmarkConfig],
    judges: Mapping[str, Reward] | None = None,
    interpreter: str = sys.executable,
) -> dict[str, Benchmark]:
    """Return the benchmarks of a recipe by name, with their files copied into the store.

    `judges` are those of the recipe, by name. `interpreter` is the Python that will run
    lm-evaluation-harness. Raises ConfigError, in one line, if it lacks the harness, or for a task
    or data that cannot be asked.
    """
    found: dict[str, Benchmark] = {}
    for name, config in configs.items():
        setting = f"evaluation.benchmarks.{name}"
        if isinstance(config, HarnessBenchmarkConfig):
            found[name] = _of_harness(store, setting, name, config, interpreter)
        else:
            judge = None if config.judge is None else (judges or {})[config.judge]
            found[name] = _of_chat(store, setting, config, judge)
    return found


def _of_chat(
    store: Store, setting: str, config: MtBenchConfig | AlpacaEvalConfig, judge: Reward | None
) -> ChatBenchmark:
    path = Path(config.data).expanduser()
    read_questions(config.kind, path, f"{setting}.data")
    if judge is not None and judge.gives_preferences and config.kind == "mt_bench":
        raise ConfigError(
            f"{setting}.judge is {config.judge}, which compares responses: MT-Bench needs a judge "
            "that gives each answer a score"
        )
    return ChatBenchmark(
        kind=config.kind,
        data=_imported(store, f"{setting}.data", [path]),
        judge=judge,
        limit=config.limit,
        max_new_tokens=config.max_new_tokens,
    )


def _of_harness(
    store: Store, setting: str, name: str, config: HarnessBenchmarkConfig, interpreter: str
) -> HarnessBenchmark:
    folder = OWN if config.tasks_folder is None else Path(config.tasks_folder).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{setting}.tasks_folder {folder} is no folder: name that of a task file")
    files = [path for path in sorted(folder.iterdir()) if _is_visible_file(path)]
    data = [] if config.data is None else _data_files(setting, Path(config.data).expanduser())
    task = find_task(folder, name if config.task is None else config.task, setting)
    task.local(data, task.shots(config.shots))
    tasks = _imported(store, f"{setting}.tasks_folder", files, folder)
    return HarnessBenchmark(
        task=task.name,
        tasks=tasks,
        task_files=foreign_files(store, tasks),
        data=_imported(store, f"{setting}.data", data) if data else None,
        harness=harness_version(setting, interpreter),
        **{field: getattr(config, field) for field in HarnessSettings.model_fields},
    )


def foreign_files(store: Store, tasks: Source) -> tuple[str, ...]:
    """Return the stored task files that are not this project's own, each with its digest."""
    own = own_digests()
    return tuple(
        f"{file.name} sha256 {file.sha256}"
        for file in store.manifest(tasks).files
        if file.sha256 not in own
    )


@cache
def harness_version(setting: str, interpreter: str) -> str:
    """Return the version of lm-evaluation-harness that `interpreter` would import.

    Raises ConfigError if there is none. `setting` is what needs it.
    """
    try:
        if interpreter == sys.executable:
            return metadata.version("lm-eval")
        asked = processes.run(
            processes.python("-c", ASK_VERSION, interpreter=interpreter),
            env=processes.environment(),
            timeout=START_SECONDS,
        )
        return asked.stdout.decode().strip()
    except (metadata.PackageNotFoundError, subprocess.CalledProcessError):
        raise ConfigError(
            f"{setting} needs lm-evaluation-harness, which {interpreter} does not have: "
            f"{interpreter} -m pip install '{HARNESS}', or let workers.python.benchmarks name a "
            "Python that has it"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"workers.python.benchmarks {interpreter} does not start ({first_line(error)}): "
            "name a Python"
        ) from error


def _is_visible_file(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_file()


def _data_files(setting: str, path: Path) -> list[Path]:
    """Return the file at `path`, or the data files in the folder at `path`."""
    if not path.exists():
        raise ConfigError(f"{setting}.data {path} does not exist: name a file or a folder of files")
    files = sorted(each for each in (path.iterdir() if path.is_dir() else [path]))
    files = [each for each in files if each.suffix in BUILDERS and _is_visible_file(each)]
    if not files:
        raise ConfigError(
            f"{setting}.data {path} holds no {', '.join(BUILDERS)} file: name the questions"
        )
    return files


def _imported(
    store: Store, setting: str, files: Sequence[Path], within: Path | None = None
) -> Source:
    where = without_home(str(within or files[0]))
    try:
        return import_source(store, files, within, provenance={"origin": {"path": where}})
    except (NotPlainError, OSError) as error:
        raise ConfigError(f"{setting}: {first_line(error)}") from error
