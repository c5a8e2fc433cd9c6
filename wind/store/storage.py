"""Where a store keeps its files: a folder of this machine or an object store, by names relative to
its root.

Whatever lies below `<root>` is reached through a `Storage`: the same few verbs for both. Names are
relative, with forward slashes; one that would leave the root is refused.
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
        """Raise StageError if the lock was lost to another process meanwhile: to be asked before
        anything is published.
        """


class Storage(Protocol):
    """The verbs of a place that keeps files. Each raises FileNotFoundError for a name that is not
    there, unless it says more.

    An object store that does not answer is a StageError, one that refuses access a ConfigError.
    """

    url: str  # as the user named it
    address: str  # the same for a process in another folder
    # a folder of this machine for what belongs to the store and need not be shared: the root
    # itself, or a cache
    local: Path

    def read(self, name: str) -> bytes:
        """The content of the file `name`."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of the file `name`, a few megabytes at a time."""

    def size(self, name: str) -> int | None:
        """The size of the file `name` in bytes, or None if it is not there."""

    def files(self, folder: str) -> Iterator[Entry]:
        """Every file below `folder`, in order of name; nothing if there is none."""

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in `folder`, sorted; nothing if there are none."""

    def write(self, name: str, content: bytes) -> None:
        """Write the file `name` so that a reader sees the old content or all of the new."""

    def create(self, name: str, content: bytes) -> bool:
        """Write the file `name` unless it is there; of two who try, one is told True."""

    def put(self, name: str, path: Path) -> None:
        """Let the content of `name` be that of the file `path` of this machine."""

    def building(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine for the block to write; at its end its content is that of `name`."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine with the content of `name`, for the block to read."""

    def publish(
        self,
        source: str | Path,
        target: str,
        files: Sequence[str],
        last: str,
        content: bytes,
        held: Held,
    ) -> None:
        """Let the `files` of the folder `source` appear as the folder `target`, and the file
        `last`, with `content`, after them.

        The source, a name or a folder on the file system of `local`, is gone afterwards with
        whatever else it held; the target must not be there. Raises StageError if the lock `held` on
        it was lost.
        """

    def delete(self, name: str) -> None:
        """Remove the file `name`, or everything below the folder `name`; nothing happens if there
        is none.
        """

    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[Held]:
        """Hold the lock `name` for the block, alone among all processes; a dead holder does not
        keep it.

        Raises BlockingIOError, whose `strerror` says who holds it, if it is taken and `wait` is
        False.
        """

    def try_lock(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lock `name` for the block if it is free; whether it was. Leaves no file where
        there was none.
        """

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The root as pyarrow sees it: names are the same."""


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
    """`name`, if it stays within the root at `url`. Raises DatasetError if not."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DatasetError(f"{name!r} is not a name within {url}")
    return name


class LocalStorage(Storage):
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.local = root
        self.url = os.fspath(root)
        self.address = os.fspath(root.absolute())

    def path(self, name: str) -> Path:
        """Where `name` lies. Raises DatasetError if that is outside the root."""
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
    """A lock of the system, which cannot be lost while its holder lives."""

    @override
    def check(self) -> None:
        pass
