"""Files that are never half there: atomic writes, durable names, and locks that die with their holder."""

import contextlib
import errno
import fcntl
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = re.compile(r"\..*\.(\d+)-\d+\.partial")


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part."""
    with atomic(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the block; the system frees it when the process dies, however it dies.

    Raises BlockingIOError, whose `strerror` names the process that holds it, if it is taken and `wait` is False.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(errno.EWOULDBLOCK, f"process {holder}", os.fspath(path)) from None
        # The holder before us may have removed the file: then our lock is on a name nobody else will find.
        if _is_at(descriptor, path):
            break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on `path` for the block unless somebody does; whether it is held. Leaves no file where there was none."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = _is_at(descriptor, path)
        except BlockingIOError:
            is_held = False
        yield is_held
        if is_held and is_new and _is_at(descriptor, path):  # the block may have removed it, and another have it by now
            path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name for the block to write; at its end the content is synced and appears at `path` by one rename."""
    partial = path.with_name(unfinished_name(path.name))
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def unfinished_name(name: str) -> str:
    """What the file `name` is called while this thread writes it."""
    return f".{name}.{os.getpid()}-{threading.get_native_id()}.partial"


def writer_of(name: str) -> int | None:
    """The process that writes, or wrote, the unfinished file called `name`; None if it is not such a name."""
    match = UNFINISHED.fullmatch(name)
    return int(match[1]) if match else None


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
