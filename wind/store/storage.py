"""Storage: the files of a store, wherever it keeps them.

All files below `<root>` are reached through a `Storage`, which has the same few verbs for a folder
of this machine and for an object store. Names are relative to the root, with forward slashes; a
name that would leave the root is refused.
"""

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow.fs
from typing_extensions import override

from wind.errors import DatasetError, first_line
from wind.files import atomic, atomic_write, lock, sync_folder, try_lock, unfinished_name
from wind.fingerprints import ahead

CHUNK_BYTES = 4 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One stored file."""

    name: str  # relative to the root
    bytes: int
    modified: float  # Unix time


class Held(Protocol):
    """A lock that this process holds."""

    def check(self) -> None:
        """Raise StageError if another process has taken the lock over.

        Call this before anything is published.
        """


class Storage(Protocol):
    """A place that keeps files.

    Methods raise FileNotFoundError for a name that is absent, unless they say otherwise. An object
    store raises StageError if it does not answer, ConfigError if it refuses access.
    """

    url: str  # as the user named it
    address: str  # the same for a process in another folder
    # A folder of this machine for what belongs to the store but need not be shared: the root
    # itself, or a cache.
    local: Path

    def read(self, name: str) -> bytes:
        """Read the file `name`."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read the file `name`, a few megabytes at a time."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None without one."""

    def files(self, folder: str) -> Iterator[Entry]:
        """Yield all files below `folder`, which may be absent, by name."""

    def names(self, folder: str) -> list[str]:
        """Return the names of files and folders in `folder`, sorted.

        There are none in an absent folder.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write the file `name` atomically.

        A reader sees either the old content or all of the new.
        """

    def create(self, name: str, content: bytes) -> bool:
        """Write the file `name` unless it exists; return whether it was written.

        Of several concurrent calls, exactly one returns True.
        """

    def put(self, name: str, path: Path) -> None:
        """Write the file `name` with the content of `path` on this machine."""

    def building(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local file to write, which becomes `name` after the block."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local file with the content of `name` to read."""

    def publish(
        self,
        source: str | Path,
        target: str,
        files: Sequence[str],
        last: str,
        content: bytes,
        held: Held,
    ) -> None:
        """Move `files` from `source` to `target`, then write the file `last`.

        Args:
            source: the name of a folder, or a folder on the file system of `local`. It is gone
                afterwards, with all its other files.
            target: the name of a folder, which must not exist.
            files: the names of the files in `source` to publish.
            last: the name of the file that appears after them.
            content: its content.
            held: the lock on `target`. Raises StageError if it was lost.
        """

    def delete(self, name: str) -> None:
        """Remove the file or folder `name`, if there is one."""

    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[Held]:
        """Hold the exclusive lock `name` for the block.

        The lock of a dead process is free. Raises BlockingIOError if the lock is taken and `wait`
        is False; the error's `strerror` says who holds it.
        """

    def try_lock(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lock `name` if it is free; yield whether it was.

        Leaves no file where there was none.
        """

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Return a pyarrow file system at the root, with the same names."""


@contextlib.contextmanager
def fetched_ahead(
    storage: Storage, folder: str, names: Sequence[str], look: Callable[[Path], T]
) -> Iterator[Iterator[tuple[Path, T]]]:
    """Fetch files in the background, one ahead of the caller.

    Yields an iterator over `names`: a file of this machine with the content of `folder`/name, which
    lasts until the next is asked for, and the result of `look` on it. Raises DatasetError for a
    file that cannot be read.
    """
    held: deque[contextlib.ExitStack] = deque()

    def fetch(name: str) -> tuple[Path, T]:
        try:
            with contextlib.ExitStack() as stack:
                path = stack.enter_context(storage.fetched(f"{folder}/{name}"))
                seen = look(path)
                held.append(stack.pop_all())
                return path, seen
        except OSError as error:
            raise DatasetError(
                f"{storage.url}/{folder}/{name} cannot be read: {first_line(error)}"
            ) from error

    def each(fetched: Iterator[tuple[Path, T]]) -> Iterator[tuple[Path, T]]:
        for path, seen in fetched:
            yield path, seen
            held.popleft().close()

    try:
        with ahead(fetch, names) as fetched:
            yield each(fetched)
    finally:
        for stack in held:
            stack.close()


def checked_name(name: str, url: str) -> str:
    """Return `name`.

    Raises DatasetError if it leads out of the root at `url`.
    """
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DatasetError(f"{name!r} is not a name within {url}")
    return name


class LocalStorage(Storage):
    """Storage in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.local = root
        self.url = os.fspath(root)
        self.address = os.fspath(root.absolute())

    def path(self, name: str) -> Path:
        """Return the path of `name`.

        Raises DatasetError if it is outside the root.
        """
        return self.root / checked_name(name, self.url)

    @override
    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    @override
    def chunks(self, name: str) -> Iterator[bytes]:
        with self.path(name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @override
    def size(self, name: str) -> int | None:
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    @override
    def files(self, folder: str) -> Iterator[Entry]:
        found = (
            Path(above, name) for above, _, names in os.walk(self.path(folder)) for name in names
        )
        for path in sorted(found, key=Path.as_posix):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if path.is_file() and not path.is_symlink():
                    state = path.stat()
                    yield Entry(
                        path.relative_to(self.root).as_posix(), state.st_size, state.st_mtime
                    )

    @override
    def names(self, folder: str) -> list[str]:
        path = self.path(folder)
        return sorted(os.listdir(path)) if path.is_dir() else []

    @override
    def write(self, name: str, content: bytes) -> None:
        with self.building(name) as path:
            path.write_bytes(content)

    @override
    def create(self, name: str, content: bytes) -> bool:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(unfinished_name(path.name))
        try:
            atomic_write(partial, content)
            os.link(partial, path)  # fails where the name is taken, unlike a rename
            sync_folder(path.parent)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    @override
    def put(self, name: str, path: Path) -> None:
        with self.building(name) as partial:
            shutil.copyfile(path, partial)

    @override
    @contextlib.contextmanager
    def building(self, name: str) -> Iterator[Path]:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as partial:
            yield partial

    @override
    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield self.path(name)

    @override
    def publish(
        self,
        source: str | Path,
        target: str,
        files: Sequence[str],
        last: str,
        content: bytes,
        held: Held,
    ) -> None:
        # The folder appears by one rename.
        folder = self.path(source) if isinstance(source, str) else source
        for stray in [path for path in folder.iterdir() if path.name not in files]:
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
        atomic_write(folder / last, content)
        path = self.path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, path)
        sync_folder(path.parent)

    @override
    def delete(self, name: str) -> None:
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @override
    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[Held]:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path, wait=wait):
            try:
                yield _Unbroken()
            finally:
                path.unlink(missing_ok=True)

    @override
    @contextlib.contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with try_lock(path) as is_held:
            yield is_held

    @override
    def filesystem(self) -> pyarrow.fs.FileSystem:
        return pyarrow.fs.SubTreeFileSystem(self.address, pyarrow.fs.LocalFileSystem())


class _Unbroken(Held):
    """A lock of the operating system, which a living holder cannot lose."""

    @override
    def check(self) -> None:
        pass
