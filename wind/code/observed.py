"""Record what a computation used beyond its spec and this project's code.

A cache hit counts only if all of it is unchanged. Code of this project is part of a stage's key.
What a user's function imports, reads and looks up is known only once it has run
(`wind.code.observing`); so it is recorded with the result, like a compiler's depfile, and compared
before the result is used again.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from wind.code.observing import listing_digest
from wind.code.packages import PACKAGES
from wind.errors import StageError
from wind.fingerprints import file_digest
from wind.machine.environment import BUILT, PLACED
from wind.machine.user_path import user_path
from wind.records import Record
from wind.redaction import is_secret_name, without_home

UNSET: Final = ""
# replaces the digest of a value that might be guessed from it
SECRET: Final = "set"


class Observed(Record):
    """Files, variables and packages that a computation used.

    Files go by path, relative to a folder of the user's modules if they lie in one; variables and
    packages go by name.
    """

    # SHA-256, or None if there was no file; a folder, which ends in a slash, has that of its names
    files: dict[str, str | None] = {}
    # SHA-256 of the value, empty if it was unset
    variables: dict[str, str] = {}
    packages: dict[str, str] = {}
    # what could not be followed: "subprocess", "network", ...
    unobserved: tuple[str, ...] = ()

    def changed(self, *, packages: bool = False) -> list[str]:
        """Describe every difference to the present; with `packages`, versions too."""
        files = [
            _how(path, digest, now)
            for path, digest in self.files.items()
            if (now := _digest_now(path)) != digest
        ]
        names = [
            name
            for name, digest in self.variables.items()
            if _variable(name, os.environ.get(name)) != digest
        ]
        versions = (
            [f"{name} {then} is {now}" for name, (then, now) in self.other_packages().items()]
            if packages
            else []
        )
        return [*files, *(f"variable {name} changed" for name in names), *versions]

    def other_packages(self) -> dict[str, tuple[str, str]]:
        """Map packages with another version here to their recorded and present version."""
        now = {name: _version(name) for name in self.packages}
        return {
            name: (then, here)
            for name, then in self.packages.items()
            if (here := now[name]) is not None and here != then
        }

    def joined(self, other: "Observed") -> "Observed":
        """Return the union of what two computations used."""
        return Observed(
            files=self.files | other.files,
            variables=self.variables | other.variables,
            packages=self.packages | other.packages,
            unobserved=tuple(sorted({*self.unobserved, *other.unobserved})),
        )

    def refuse_changed(self, stage: str) -> None:
        """Raise StageError if something was edited while `stage` used it.

        Some of its rows would be from before the edit and others from after.
        """
        if changed := self.changed():
            raise StageError(f"{changed[0]} while {stage} ran: start the run again")


class Noted:
    """Everything that the computations of a block used."""

    def __init__(self) -> None:
        self._of: dict[object, Observed] = {}

    def add(self, observer: object, observed: Observed) -> None:
        """Keep all that `observer` has reported so far."""
        self._of[observer] = observed

    def all(self) -> Observed:
        """Return all of it, with the versions of loaded engines."""
        whole = Observed(packages=engines())
        for each in self._of.values():
            whole = whole.joined(each)
        return whole


_noted: ContextVar[Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[Noted]:
    """Note what the block's computations use."""
    token = _noted.set(current := Noted())
    try:
        yield current
    finally:
        _noted.reset(token)


def note(observer: object, observed: Observed) -> None:
    """Report to the enclosing `noting` block, if any, what `observer` has seen."""
    if (current := _noted.get()) is not None:
        current.add(observer, observed)


def noted() -> Observed:
    """Return what the enclosing `noting` block has recorded so far.

    Empty without such a block.
    """
    current = _noted.get()
    return Observed() if current is None else current.all()


def from_report(report: Mapping[str, Any]) -> Observed:
    """Convert the report of an observer in another process (`wind.code.observing`)."""
    variables = {
        name: digest
        for name, digest in report["variables"].items()
        if name not in BUILT and name not in PLACED
    }
    return Observed(
        files={_short(path): digest for path, digest in report["files"].items()},
        variables={name: _guarded(name, digest) for name, digest in variables.items()},
        packages=_versions(report["packages"]),
        unobserved=tuple(report["unobserved"]),
    )


def engines() -> dict[str, str]:
    """Return the versions of loaded packages that can change a result."""
    loaded = [name for name in PACKAGES if name.partition("-")[0] in sys.modules]
    return {name: version for name in loaded if (version := _version(name)) is not None}


def _how(path: str, then: str | None, now: str | None) -> str:
    if now is None or then is None:
        return f"{path} {'is there' if then is None else 'is gone'}"
    return f"{path} {'has other files' if path.endswith(os.sep) else 'was edited'}"


def _digest_now(path: str) -> str | None:
    """Return the present digest of a recorded path, or None."""
    file = _file(path)
    try:
        if path.endswith(os.sep):
            return listing_digest(str(file))
        found = file.stat()
        if not file.is_file():
            return "no file"
        return _file_digest(
            file.resolve(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _file(path: str) -> Path:
    """Return where a recorded file lies now, or would lie."""
    if path.startswith("~/") or os.path.isabs(path):
        return Path(path).expanduser()
    places = [Path(folder, path) for folder in user_path()]
    return next((place for place in places if place.exists()), places[0])


@cache
def _file_digest(file: Path, *stat: int) -> str:
    """Return the digest of a file, reading it once per `stat`.

    Users cannot set the time of the last status change.
    """
    return file_digest(file)


def _short(path: str) -> str:
    """Return an absolute path as it is recorded.

    The form is the same in a copy of the folder, and for another user.
    """
    for folder in (os.path.join(each, "") for each in user_path()):
        if path.startswith(folder):
            return path.removeprefix(folder) or "./"
    return without_home(path)


def _variable(name: str, value: str | None) -> str:
    if value is None:
        return UNSET
    return _guarded(name, hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest())


def _guarded(name: str, digest: str) -> str:
    return SECRET if digest and is_secret_name(name) else digest


def _versions(modules: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of installed modules.

    They are those of their distributions, or else the modules' own statements.
    """
    return {name: version for name, said in modules.items() if (version := _version(name) or said)}


@cache
def _version(name: str) -> str | None:
    """Return the version of a distribution, or None.

    It is found by its name or that of one of its modules.
    """
    try:
        return metadata.version(_distributions().get(name, name))
    except metadata.PackageNotFoundError:
        return None


@cache
def _distributions() -> Mapping[str, str]:
    """Map installed modules to the distributions that have another name.

    For example, `yaml` belongs to PyYAML. Covers those that list their modules.
    """
    found = {}
    for path in {Path(folder) for folder in sys.path}:
        for listed in path.glob("*-info/top_level.txt"):
            names = listed.read_text(encoding="utf-8", errors="replace").split()
            found.update(dict.fromkeys(names, listed.parent.name.partition("-")[0]))
    return found
