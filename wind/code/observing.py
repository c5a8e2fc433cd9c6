"""Observe what a user's code uses while it runs.

This happens in the code's own process. Its modules are compiled from bytes that are hashed as they
are read, never from bytecode beside them, however they are imported. An audit hook sees what else
is opened for reading, and each file is hashed before the code gets it; the environment records
which variables the code itself looks up. Installed packages count by name, the system's own files
are no dependency, and what cannot be seen is named: programs it starts, the network, and files that
native libraries open themselves.

This module imports only Python's standard library: it runs before the user's code, in a process
without anything of ours.
"""

import contextlib
import hashlib
import importlib.machinery
import os
import site
import stat
import sys
import sysconfig
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Final

_LIBRARIES: Final = (
    "bin",
    "lib",
    "lib64",
    "sbin",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "usr/share",
)
SYSTEM: Final = tuple(f"/{name}/" for name in ("boot", "dev", "proc", "run", "sys", *_LIBRARIES))
PROJECT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# audit events of actions that cannot be followed
UNSEEN: Final = {
    "os.exec": "subprocess",
    "os.fork": "subprocess",
    "os.forkpty": "subprocess",
    "os.posix_spawn": "subprocess",
    "os.spawn": "subprocess",
    "os.system": "subprocess",
    "subprocess.Popen": "subprocess",
    "socket.connect": "network",
    "socket.getaddrinfo": "network",
    "socket.sendto": "network",
}
# these open files without audit events
NATIVE: Final = ("duckdb", "polars", "pyarrow", "safetensors", "sentencepiece", "tokenizers")
FOLDERS: Final = ("os.listdir", "os.scandir")
WATCHED: Final = frozenset(
    (*UNSEEN, *FOLDERS, "open", "import", "ctypes.dlopen", "sqlite3.connect")
)
LOOKS_UP: Final = (
    "<frozen os>",
    os.__file__,
    "<frozen _collections_abc>",
    "_collections_abc.py",
    __file__,
)

Loader = importlib.machinery.SourceFileLoader


class Observer:
    """Everything that this process has used since `begin`."""

    def __init__(self) -> None:
        # SHA-256 by absolute path; a folder, which ends in a slash, has that of its names
        self.files: dict[str, str | None] = {}
        # SHA-256 of the value, empty if it is unset
        self.variables: dict[str, str] = {}
        self.unobserved: set[str] = set()
        # top-level package named by the user, theirs even if it is installed
        self._own = ""
        self._written: set[str] = set()
        self._is_on = True
        self._busy = threading.local()
        self._installed = _installed()

    def begin(self, own: str) -> None:
        """Start observing; modules of the package `own` always count as the user's."""
        self._own = own
        self._watch_imports()
        # the new object keeps the data
        os.environ = _Environment(self)  # noqa: B003
        sys.addaudithook(self._heard)
        os.register_at_fork(after_in_child=self._end)

    def report(self) -> dict[str, Any]:
        """Return everything as JSON, without files that no longer exist.

        Those were the code's own.
        """
        files = {
            path: digest
            for path, digest in self.files.items()
            if digest is None or os.path.exists(path)
        }
        loaded = {name.partition(".")[0] for name in list(sys.modules)}
        native = {f"files opened by {name}" for name in NATIVE if name in loaded}
        return {
            "files": files,
            "variables": dict(self.variables),
            "packages": {
                name: _said_version(name)
                for name in sorted(loaded)
                if not name.startswith("_") and self._is_package(name)
            },
            "unobserved": sorted(self.unobserved | native),
        }

    def looked_at(self, name: str, value: str | None) -> None:
        """Note that the user's code read the variable `name`."""
        self.variables.setdefault(
            name,
            ""
            if value is None
            else hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest(),
        )

    def is_users(self, path: str) -> bool:
        """Return True for a file outside the system, Python and installed packages."""
        real = os.path.realpath(path)
        return not any(
            each.startswith(folder) for each in (path, real) for folder in self._installed
        )

    def _end(self) -> None:
        # in a forked process, whose observations nobody would receive
        self._is_on = False

    def _is_package(self, name: str) -> bool:
        module = sys.modules.get(name)
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        places = [origin, *getattr(module, "__path__", [])][: 1 if origin else None]
        return any(isinstance(place, str) and "-packages" in place for place in places)

    def _watch_imports(self) -> None:
        """Have every source loader compile the user's modules from hashed bytes."""
        compiled = Loader.get_code

        def get_code(loader: Loader, fullname: str) -> CodeType | None:
            path = os.path.abspath(loader.get_filename(fullname))
            if not (self.is_users(path) or fullname.partition(".")[0] == self._own):
                return compiled(loader, fullname)
            with self._aside():
                source = loader.get_data(path)
            self.files[path] = hashlib.sha256(source).hexdigest()
            code: CodeType = loader.source_to_code(source, path)
            return code

        Loader.get_code = get_code  # type: ignore[method-assign, assignment]

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        # most events are irrelevant
        if event not in WATCHED or not self._is_on or getattr(self._busy, "is_on", False):
            return
        with self._aside():
            if event == "open":
                self._opened(*arguments)
            elif event in UNSEEN:
                self.unobserved.add(UNSEEN[event])
            elif event in FOLDERS:
                self._listed(arguments[0], sys._getframe(1))
            elif event == "import" and arguments[1]:
                self._module(arguments[0], arguments[1])
            elif event in ("ctypes.dlopen", "sqlite3.connect") and arguments[0]:
                self._read(arguments[0])

    def _aside(self) -> "_Aside":
        """Suspend the observation of this thread for a block."""
        return _Aside(self._busy)

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        # a descriptor
        if not isinstance(path, str | bytes):
            return
        writes = isinstance(flags, int) and flags & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        )
        if not writes:
            self._read(path)
            return
        name = os.path.abspath(os.fsdecode(path))
        self._written.add(name)
        if self.files.pop(name, None) is not None:
            self.unobserved.add("files that it also writes")

    def _read(self, path: Any) -> None:
        name = os.path.abspath(os.fsdecode(path))
        if name in self.files or name in self._written or not self.is_users(name):
            return
        try:
            if stat.S_ISREG(os.stat(name).st_mode):
                with open(name, "rb") as file:
                    self.files[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            # if it existed, the code would behave differently
            self.files[name] = None
        except (OSError, ValueError):
            pass

    def _listed(self, path: Any, asking: FrameType | None) -> None:
        if isinstance(path, int) or (
            asking is not None and "importlib" in asking.f_code.co_filename
        ):
            return
        name = os.path.join(os.path.abspath(os.fsdecode(path or ".")), "")
        if name not in self.files and self.is_users(name):
            with contextlib.suppress(OSError):
                self.files[name] = listing_digest(name)

    def _module(self, name: str, path: str) -> None:
        """Note a module that is not loaded from source."""
        if self.is_users(path) or name.partition(".")[0] == self._own:
            self._read(path)


def listing_digest(folder: str) -> str:
    """Return the SHA-256 of the names in a folder, ignoring bytecode."""
    names = sorted(name for name in os.listdir(folder) if name != "__pycache__")
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def _said_version(name: str) -> str:
    version = getattr(sys.modules.get(name), "__version__", "")
    return version if isinstance(version, str) else ""


class _Aside:
    def __init__(self, busy: threading.local) -> None:
        self._busy = busy

    def __enter__(self) -> None:
        self._before = getattr(self._busy, "is_on", False)
        self._busy.is_on = True

    def __exit__(self, *raised: object) -> None:
        self._busy.is_on = self._before


class _Environment(os._Environ[str]):
    """`os.environ` that reports what the user's code itself looks up."""

    def __init__(self, observer: Observer) -> None:
        given = os.environ
        codec = (given.encodekey, given.decodekey, given.encodevalue, given.decodevalue)
        super().__init__(given._data, *codec)  # type: ignore[attr-defined]
        self._observer = observer
        # where all of it was iterated over: a copy asks for one variable after the other
        self._whole: tuple[int, int] | None = None

    def __getitem__(self, name: str) -> str:
        try:
            value = super().__getitem__(name)
        except KeyError:
            self._note(name, None)
            raise
        self._note(name, value)
        return value

    def __iter__(self) -> Iterator[str]:
        frame = _asking()
        if frame is not None and self._observer.is_users(frame.f_code.co_filename):
            self._whole = (id(frame), frame.f_lasti)
            self._observer.unobserved.add("environment")
        return super().__iter__()

    def _note(self, name: str, value: str | None) -> None:
        frame = _asking()
        if (
            frame is None
            or (id(frame), frame.f_lasti) == self._whole
            or not self._observer.is_users(frame.f_code.co_filename)
        ):
            return
        self._observer.looked_at(name, value)


def _asking() -> FrameType | None:
    """Return the frame that looks into the environment, however it does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.endswith(LOOKS_UP):
        frame = frame.f_back
    return frame


def _installed() -> tuple[str, ...]:
    """Return the folders that are not the user's.

    Each has a trailing slash. They belong to the system, Python, installed packages or this
    project.
    """
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [
        os.path.dirname(os.__file__),
        *site.getsitepackages(),
        site.getusersitepackages(),
        PROJECT,
    ]
    found = {
        os.path.join(each, "")
        for path in paths
        for each in (os.path.abspath(path), os.path.realpath(path))
    }
    return (*sorted(found), *SYSTEM, "<")
