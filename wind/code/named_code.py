"""Code that is named by data: a stored spec, or the config of a stored run, which may have come
from anywhere.

Code runs if the user's own recipe names it. A store keeps recipes too, beside its runs, but whoever
made the store wrote them; so this user's are also noted, by their digests, in a folder of the
user's own that no store brings along. What else names code, such as `pty:spawn` as a reward, is
shown, with its file and digest, and runs only if the user says so.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import get_args, get_type_hints

from pydantic import BaseModel

from wind.config.base import Function
from wind.config.checks import ChecksConfig
from wind.config.runs import RunConfig
from wind.errors import ConfigError
from wind.files import read_plain
from wind.machine.terminal import complain
from wind.machine.user_path import state_folder


@dataclass(frozen=True)
class NamedCode:
    """What a setting names: a function, a Python file, an interpreter, or a condition that is
    evaluated as Python.
    """

    setting: str
    name: str

    def __str__(self) -> str:
        """The setting, the name, and the file that it stands for now with its digest; nothing of it
        is imported.
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
        if self.setting.startswith("checks.extra"):
            return None
        if self.setting.startswith(("checks.files", "workers.python")):
            return Path(self.name).absolute()
        # and with it polars, which most commands do without
        from wind.code.functions import find_module, source_file

        spec = find_module(self.name.partition(":")[0])
        return None if spec is None else source_file(spec)


def functions_in(model: BaseModel, prefix: str = "") -> Iterator[NamedCode]:
    """Every user function that a config, or a spec, names, by its dotted setting."""
    hints = get_type_hints(type(model), include_extras=True)
    for name, value in model:
        if isinstance(value, str) and (
            hints.get(name) == Function or Function in get_args(hints.get(name))
        ):
            yield NamedCode(f"{prefix}{name}", value)
        for part in (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else [value]
        ):
            if isinstance(part, BaseModel):
                yield from functions_in(part, f"{prefix}{name}.")


def code_in(config: RunConfig) -> Iterator[NamedCode]:
    """All that a config names and a run of it would execute."""
    yield from functions_in(config)
    yield from (NamedCode("checks.files", file) for file in config.checks.files)
    yield from (
        NamedCode(f"workers.python.{kind}", path) for kind, path in config.workers.python.items()
    )
    yield from conditions_in(config.checks)


def conditions_in(checks: ChecksConfig) -> Iterator[NamedCode]:
    """The row conditions of a config's own expectations, which pandas evaluates: they can call what
    they like.
    """
    for noun, expectations in checks.extra.items():
        for index, each in enumerate(expectations):
            if (condition := each.arguments().get("row_condition")) is not None:
                yield NamedCode(f"checks.extra.{noun}[{index}].row_condition", str(condition))


def require_leave(what: str, named: Collection[NamedCode], *, run_code: bool) -> None:
    """Show the code that `what`, which is data, names; raise ConfigError in that line if it names
    any and `run_code` is False.
    """
    if named:
        shown = "; ".join(map(str, named))
        if not run_code:
            raise ConfigError(
                f"{what} names code, and no recipe that you ran does: {shown}; give --run-code to run it"
            )
        complain(f"{what} names code, which runs: {shown}")


def note_own(config: bytes) -> None:
    """Note that this user ran the recipe that is kept as `config`; where that cannot be written,
    `--run-code` will be needed.
    """
    if (note := _note(config)) is None:
        return
    with suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.touch(mode=0o600)


def is_own(config: bytes) -> bool:
    """Whether this user ran the recipe that is kept as `config`."""
    note = _note(config)
    return note is not None and note.is_file()


def _note(config: bytes) -> Path | None:
    """The file whose being there says so; None for a user without a home."""
    folder = state_folder()
    return None if folder is None else folder / "recipes" / sha256(config).hexdigest()
