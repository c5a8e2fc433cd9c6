"""What a computation was observed to use, beyond its spec and this project's code; a cache hit
counts only if it is all the same.

Its own code is in the key of a stage. What a user's function imports, reads and looks up is known
only once it has run, see `wind.code.observing`; so it is recorded with the result, as a compiler's
depfile is, and compared before the result is taken again.
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
SECRET: Final = "set"  # in place of the digest of what might be guessed from it


class Observed(Record):
    """Files by path, relative to a folder of the user's modules where they lie under one; variables
    and packages by name.
    """

    # sha256; None where there was none; of a folder, that ends in a slash, of its names
    files: dict[str, str | None] = {}
    variables: dict[str, str] = {}  # sha256 of the value, empty where it was not set
    packages: dict[str, str] = {}
    unobserved: tuple[str, ...] = ()  # what could not be followed: "subprocess", "network", ...

    def changed(self, *, packages: bool = False) -> list[str]:
        """What is no longer as it was, an entry each; with `packages`, their versions too."""
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
        """Those of the packages that have another version here: that of then and that of now."""
        now = {name: _version(name) for name in self.packages}
        return {
            name: (then, here)
            for name, then in self.packages.items()
            if (here := now[name]) is not None and here != then
        }

    def joined(self, other: "Observed") -> "Observed":
        """What either of two computations used."""
        return Observed(
            files=self.files | other.files,
            variables=self.variables | other.variables,
            packages=self.packages | other.packages,
            unobserved=tuple(sorted({*self.unobserved, *other.unobserved})),
        )

    def refuse_changed(self, stage: str) -> None:
        """Raise StageError if something was edited while `stage` used it: its rows would be of one
        and of the other.
        """
        if changed := self.changed():
            raise StageError(f"{changed[0]} while {stage} ran: start the run again")


class Noted:
    """What the computations of a block were observed to use."""

    def __init__(self) -> None:
        self._of: dict[object, Observed] = {}

    def add(self, observer: object, observed: Observed) -> None:
        """Keep all that `observer` has told until now."""
        self._of[observer] = observed

    def all(self) -> Observed:
        """All of it, with the versions of the engines that this process has loaded."""
        whole = Observed(packages=engines())
        for each in self._of.values():
            whole = whole.joined(each)
        return whole


_noted: ContextVar[Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[Noted]:
    """A block whose computations are noted."""
    token = _noted.set(current := Noted())
    try:
        yield current
    finally:
        _noted.reset(token)


def note(observer: object, observed: Observed) -> None:
    """Tell the block that is noted, if there is one, what `observer` has seen so far."""
    if (current := _noted.get()) is not None:
        current.add(observer, observed)


def noted() -> Observed:
    """What the computations of the block that is noted were observed to use until now; of none,
    nothing.
    """
    current = _noted.get()
    return Observed() if current is None else current.all()


def from_report(report: Mapping[str, Any]) -> Observed:
    """What an observer in another process of this interpreter reported, see `wind.code.observing`."""
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
    """The versions of the packages that can move a result and that this process has loaded."""
    loaded = [name for name in PACKAGES if name.partition("-")[0] in sys.modules]
    return {name: version for name in loaded if (version := _version(name)) is not None}


def _how(path: str, then: str | None, now: str | None) -> str:
    if now is None or then is None:
        return f"{path} {'is there' if then is None else 'is gone'}"
    return f"{path} {'has other files' if path.endswith(os.sep) else 'was edited'}"


def _digest_now(path: str) -> str | None:
    """The digest of the file or folder that is called so in a record, None if there is none."""
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
    """Where the file that is called so in a record lies now, or would lie."""
    if path.startswith("~/") or os.path.isabs(path):
        return Path(path).expanduser()
    places = [Path(folder, path) for folder in user_path()]
    return next((place for place in places if place.exists()), places[0])


@cache
def _file_digest(file: Path, *stat: int) -> str:
    """The digest of a file, read once while its `stat` stays the same: nobody sets the time of the
    last change as they please.
    """
    return file_digest(file)


def _short(path: str) -> str:
    """An absolute path as records have it: the same in a copy of the folder, and for another user."""
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
    """The versions of installed modules: of their distributions, else as they say themselves."""
    return {name: version for name, said in modules.items() if (version := _version(name) or said)}


@cache
def _version(name: str) -> str | None:
    """The version of the distribution that is called `name` or has a module of that name; None if
    none is found.
    """
    try:
        return metadata.version(_distributions().get(name, name))
    except metadata.PackageNotFoundError:
        return None


@cache
def _distributions() -> Mapping[str, str]:
    """The distribution of each installed module that has another name, as far as they tell: `yaml`
    is of PyYAML.
    """
    found = {}
    for path in {Path(folder) for folder in sys.path}:
        for listed in path.glob("*-info/top_level.txt"):
            names = listed.read_text(encoding="utf-8", errors="replace").split()
            found.update(dict.fromkeys(names, listed.parent.name.partition("-")[0]))
    return found
