"""Where a store keeps its files: a local folder, by names relative to its root.

Whatever lies below `<root>` is reached through a `Storage`, so that an object store can stand behind the same few verbs. Names
are relative, with forward slashes; one that would leave the root is refused.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow.fs

from wind.errors import DatasetError
from wind.files import atomic_write, lock, sync_folder

CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Entry:
    """One stored file."""

    name: str  # relative to the root
    bytes: int
    modified: float  # Unix time


class Storage(Protocol):
    """The verbs of a place that keeps files. Each raises FileNotFoundError for a name that is not there, unless it says more."""

    url: str

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

    def delete(self, name: str) -> None:
        """Remove the file `name`, or everything below the folder `name`; nothing happens if there is none."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold the lock `name` for the block, alone among all processes; a dead holder does not keep it."""

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The root as pyarrow sees it: names are the same."""


class LocalStorage:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = os.fspath(root)

    def path(self, name: str) -> Path:
        """Where `name` lies. Raises DatasetError if that is outside the root."""
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DatasetError(f"{name!r} is not a name within {self.root}")
        return self.root / name

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return self.path(name).read_bytes()

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Storage`."""
        with self.path(name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def size(self, name: str) -> int | None:
        """See `Storage`."""
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def files(self, folder: str) -> Iterator[Entry]:
        """See `Storage`."""
        for path in sorted(self.path(folder).rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if path.is_file() and not path.is_symlink():
                    state = path.stat()
                    yield Entry(path.relative_to(self.root).as_posix(), state.st_size, state.st_mtime)

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        path = self.path(folder)
        return sorted(os.listdir(path)) if path.is_dir() else []

    def write(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage`."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            atomic_write(partial, content)
            os.link(partial, path)  # fails where the name is taken, unlike a rename
            sync_folder(path.parent)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def delete(self, name: str) -> None:
        """See `Storage`."""
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """See `Storage`."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path):
            yield

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """See `Storage`."""
        return pyarrow.fs.SubTreeFileSystem(self.url, pyarrow.fs.LocalFileSystem())
