"""Code that is named by data.

That is a stored spec, or the config of a stored run, which may come from anywhere. Code runs if the
user's own recipe names it. A store keeps recipes too, beside its runs, but whoever made the store
wrote them; so the digests of this user's recipes are also noted in a folder of the user's own,
which no store brings along. Any other named code, such as `pty:spawn` as a reward, is shown with
its file and digest, and runs only if the user allows it.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from pydantic import BaseModel

from wind.config.base import CodeFile, CodeFolder, Function
from wind.config.checks import ChecksConfig
from wind.config.endpoints import EndpointSettings
from wind.config.runs import RunConfig
from wind.errors import ConfigError
from wind.files import read_plain
from wind.machine.terminal import complain
from wind.machine.user_path import state_folder

# Settings that name files which are code, but no module: the files of a benchmark's task.
FILES: Final = ("tasks_folder", "task_files")


@dataclass(frozen=True)
class NamedCode:
    """Code that a setting names.

    A function, a file or folder of files that run, an interpreter, or a condition that is evaluated
    as Python; or the address of a server, which is code that runs elsewhere.
    """

    setting: str
    name: str

    def __str__(self) -> str:
        """Return the setting, the name, and the file with its digest.

        Nothing is imported.
        """
        path = self._file()
        if path is None:
            return f"{self.setting} {self.name}"
        try:
            digest = f"sha256 {sha256(read_plain(path)).hexdigest()}"
        except OSError as error:
            digest = f"which cannot be read: {error.strerror or error}"
        return f"{self.setting} {self.name} ({path}, {digest})"

    def _file(self) -> Path | None:
        if self.setting.startswith("checks.extra") or self.setting.endswith((*FILES, ".url")):
            return None
        if self.setting.startswith(("checks.files", "workers.python")):
            return Path(self.name).absolute()
        # imports polars, which most commands do without
        from wind.code.functions import find_module, source_file

        spec = find_module(self.name.partition(":")[0])
        return None if spec is None else source_file(spec)


def functions_in(model: BaseModel, prefix: str = "") -> Iterator[NamedCode]:
    """Yield every function, folder and file of the user's that a config or spec names."""
    hints = get_type_hints(type(model), include_extras=True)
    for name, value in model:
        hint = hints.get(name)
        if any(code in (hint, *get_args(hint)) for code in (Function, CodeFile, CodeFolder)):
            names = value if isinstance(value, tuple) else (value,)
            yield from (NamedCode(f"{prefix}{name}", each) for each in names if each is not None)
        for place, part in _parts(name, value):
            if isinstance(part, BaseModel):
                yield from functions_in(part, f"{prefix}{place}.")


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each part of the field `name`."""
    if isinstance(value, dict):
        yield from ((f"{name}.{key}", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((name, part) for part in value)
    else:
        yield name, value


def addresses_in(model: BaseModel, prefix: str = "") -> Iterator[NamedCode]:
    """Yield every address that a config sends prompts, responses, and perhaps a key to."""
    for name, value in model:
        if isinstance(model, EndpointSettings) and name == "url":
            for url in (value,) if isinstance(value, str) else value:
                yield NamedCode(f"{prefix}url", url)
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, BaseModel):
                below = f"{prefix}{name}.{key}." if key else f"{prefix}{name}."
                yield from addresses_in(part, below)


def code_in(config: RunConfig) -> Iterator[NamedCode]:
    """Yield all code that running a config would execute, and every address it would send to."""
    yield from functions_in(config)
    yield from addresses_in(config)
    yield from (NamedCode("checks.files", file) for file in config.checks.files)
    yield from (
        NamedCode(f"workers.python.{kind}", path) for kind, path in config.workers.python.items()
    )
    yield from conditions_in(config.checks)


def conditions_in(checks: ChecksConfig) -> Iterator[NamedCode]:
    """Yield the row conditions of a config's own expectations.

    pandas evaluates them, so they can call anything.
    """
    for noun, expectations in checks.extra.items():
        for index, each in enumerate(expectations):
            if (condition := each.arguments().get("row_condition")) is not None:
                yield NamedCode(f"checks.extra.{noun}[{index}].row_condition", str(condition))


def require_leave(what: str, named: Collection[NamedCode], *, run_code: bool) -> None:
    """Show the code that `what` names; raise ConfigError unless `run_code` allows it."""
    if named:
        shown = "; ".join(map(str, named))
        if not run_code:
            raise ConfigError(
                f"{what} names code, and no recipe that you ran does: {shown}; "
                "give --run-code to run it"
            )
        complain(f"{what} names code, which runs: {shown}")


def note_own(config: bytes) -> None:
    """Note that this user ran the recipe with the content `config`.

    If that cannot be written, `--run-code` will be needed.
    """
    if (note := _note(config)) is None:
        return
    with suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.touch(mode=0o600)


def is_own(config: bytes) -> bool:
    """Return True if this user ran the recipe with the content `config`."""
    note = _note(config)
    return note is not None and note.is_file()


def _note(config: bytes) -> Path | None:
    """Return the file that notes a recipe; None without a home."""
    folder = state_folder()
    return None if folder is None else folder / "recipes" / sha256(config).hexdigest()
