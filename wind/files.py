"""Read plain files, write atomically, and lock until the holder dies."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final

UNFINISHED = re.compile(r"\..*\.(\d+)-\d+\.partial")
# bytes of a text that is read at once; the largest tokenizers have half of it
LARGEST_TEXT: Final = 64 * 2**20
KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotPlainError(OSError):
    """A path is not a plain file, or leaves its folder."""


def open_plain(path: Path, within: Path | None = None) -> BufferedReader:
    """Open the plain file at `path` for reading, following links.

    For a file in the folder `within`, links may lead into that folder, and from a snapshot in a
    cache of the Hub into the blobs of the same repository. Nothing but a plain file is opened, so
    that nothing waits for a writer. Raises NotPlainError in one line, and OSError as `open` does.
    """
    real = Path(os.path.realpath(path))
    if within is not None and not any(
        real.is_relative_to(folder) for folder in _reached_from(within)
    ):
        raise NotPlainError(
            f"{path} leads to {real}, out of its folder: put a copy of the file in its place"
        )
    _require_plain(path, os.stat(real))
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # it may have been replaced by now
        _require_plain(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, within: Path | None = None) -> bytes:
    """Return the content of a small plain file, opened as by `open_plain`.

    Raises NotPlainError also for a file larger than `LARGEST_TEXT`.
    """
    with open_plain(path, within) as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise NotPlainError(
            f"{path} has more than {LARGEST_TEXT // 2**20} MiB, which no file of its kind has"
        )
    return content


def plain_text(path: Path) -> str:
    """Return the text of a UTF-8 file with newlines as line ends.

    Raises UnicodeError, and what `read_plain` raises.
    """
    return read_plain(path).decode().replace("\r\n", "\n").replace("\r", "\n")


def _refuse_special(path: Path) -> None:
    """Raise NotPlainError if something other than a plain file is at `path`."""
    with contextlib.suppress(FileNotFoundError):
        _require_plain(path, path.stat())


def _require_plain(path: Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = KINDS.get(stat.S_IFMT(state.st_mode), "something else")
        raise NotPlainError(f"{path} is {kind}, not a plain file")


def _reached_from(folder: Path) -> list[Path]:
    """Return the resolved folders that links in `folder` may lead into."""
    real = Path(os.path.realpath(folder))
    caches = [
        above.parents[1] for above in (real, *real.parents) if above.parent.name == "snapshots"
    ]
    # models--ORG--NAME, datasets--ORG--NAME
    return [real, *(cache / "blobs" for cache in caches if "--" in cache.name)]


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically.

    A reader sees the old file or the whole new one, never a part.
    """
    with atomic(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the block.

    The system releases it when the process dies, however it dies. Raises BlockingIOError, whose
    `strerror` names the process that holds it, if it is taken and `wait` is False.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(errno.EWOULDBLOCK, f"process {holder}", os.fspath(path)) from None
        # The previous holder may have removed the file: then our lock is on a name that nobody else
        # will find.
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
    """Try to lock `path` for the block; yield True on success.

    Leaves no file behind if there was none.
    """
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = _is_at(descriptor, path)
        except BlockingIOError:
            is_held = False
        yield is_held
        # the block may have removed it, and another process may have it by now
        if is_held and is_new and _is_at(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` at the end.

    The content is synced, and appears by one rename. Raises NotPlainError if something
    other than a file is there: a device, say, would be gone.
    """
    _refuse_special(path)
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
    """Return the name of the file `name` while this thread writes it."""
    return f".{name}.{os.getpid()}-{threading.get_native_id()}.partial"


def writer_of(name: str) -> int | None:
    """Return the process that writes, or wrote, an unfinished file.

    None if `name` is not the name of such a file.
    """
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
