"""Digests of the code that computes a stage.

That is every module of this project that the stage's own module imports, directly or not. Nobody
lists them: they follow from the import statements, including those within functions. The digest of
a stage's code is part of every key, and is computed in the process that runs the code, from the
sources as they were loaded there.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from wind.code import loading
from wind.errors import StageError
from wind.fingerprints import digest, file_digest

# Rooms and modules that stages import but that decide none of their values, with the reason. A test
# traces every stage against this.
NEUTRAL: Final[Mapping[str, str]] = {
    "wind.audit": "reads what is published; no stage calls it",
    "wind.code": "names the code that ran, and loads it",
    "wind.exchange": "reads what is published; no stage calls it",
    "wind.redaction": "changes what is shown and logged",
    "wind.stages": "carries rows and records in and out as they are",
    "wind.store": "carries rows and records in and out as they are",
    "wind.config.base": "names settings",
    "wind.errors": "changes what is shown and logged",
    "wind.files": "carries bytes in and out as they are",
    "wind.fingerprints": "names what is there",
    "wind.records": "refuses fields that are not declared",
    "wind.machine.lifeline": "starts, ends and watches processes",
    "wind.machine.processes": "starts, ends and watches processes",
    "wind.machine.terminal": "changes what is shown and logged",
    "wind.machine.user_path": "locates the user's modules; what is loaded from there is observed",
}
# within neutral rooms
DECIDING: Final = frozenset({"wind.store.schemas"})

# no file system has a coarser clock
UNSETTLED_NS: Final = 2 * 10**9

# `ruff format` writes every import statement in one of these two forms.
_IMPORT: Final = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)|import[ \t]+([\w.]+))",
    re.MULTILINE,
)


def code_of(*modules: str) -> dict[str, str]:
    """Return the SHA-256 of each source in the import closure of `modules`.

    Each is taken as loaded in this process, or else from its file.
    """
    return {module: source_of(module) for module in _reached(modules)}


def source_of(module: str) -> str:
    """Return the SHA-256 of a module's source, preferably as loaded here."""
    return loading.loaded.get(module) or _as_it_lies(module)


def code_digest(stage: str) -> str:
    """Return the digest of the code that computes `stage`."""
    return digest(code_of(f"wind.{stage}"))


def refuse_edited(stage: str, planned: str | None = None) -> None:
    """Raise StageError if code of `stage` was edited since it was loaded.

    Also raises if its digest is no longer `planned`. To be called where the stage was computed,
    before its result counts, which would otherwise be filed under other code.
    """
    for module, loaded in code_of(f"wind.{stage}").items():
        if loaded != _as_it_lies(module):
            raise StageError(f"{_file(module)} was edited while {stage} ran: start the run again")
    if planned is not None and code_digest(stage) != planned:
        raise StageError(
            f"the code that computes {stage} was edited while the run went on: start it again"
        )


@cache
def _reached(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Return the import closure of `modules`, sorted, without neutral modules."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imports(module)
    return tuple(sorted(module for module in found if not is_neutral(module)))


def is_neutral(module: str) -> bool:
    """Return True if nothing in `module` can decide a value.

    It is in a neutral room, or is a neutral module by itself.
    """
    rooms = (".".join(module.split(".")[:end]) for end in range(1, module.count(".") + 2))
    return module == "wind" or (module not in DECIDING and any(room in NEUTRAL for room in rooms))


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Return the modules of this project that `module` imports.

    Their packages are included, since Python imports them too.
    """
    named = _named(_file(module).read_text(encoding="utf-8"))
    parts = [name.split(".") for name in named if name.partition(".")[0] in loading.PACKAGES]
    packages = {".".join(each[: end + 1]) for each in parts for end in range(len(each))}
    return tuple(sorted(name for name in packages if _is_module(name)))


def _named(source: str) -> Iterator[str]:
    """Yield the absolute names that a source imports: modules or their attributes."""
    for base, names, plain in _IMPORT.findall(source):
        if plain:
            yield plain
            continue
        yield base
        for name in names.strip("() \n").split(","):
            if imported := name.split():
                yield f"{base}.{imported[0]}"


def _as_it_lies(module: str) -> str:
    """Return the SHA-256 of a module's file.

    It is cached, since a plan asks for the same files for each of its tasks.
    """
    path = _file(module)
    status = os.stat(path)
    # a further edit might leave the same time
    if time.time_ns() - status.st_ctime_ns < UNSETTLED_NS:
        return file_digest(path)
    return _digest_at(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _digest_at(path: Path, *_status: int) -> str:
    """Return the digest of a file with the given status.

    Editors cannot set the time of the last status change; the kernel does.
    """
    return file_digest(path)


def _file(module: str) -> Path:
    return _file_below(loading.ROOT, module)


@cache
def _file_below(root: str, module: str) -> Path:
    path = Path(root, *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return _file(name).is_file()
