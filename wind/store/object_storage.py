"""Storage in a bucket: S3 and compatible services, Google Cloud Storage, Azure.

Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) and
appear in no config, manifest or message. Transient failures (500, 503, a refused or dropped
connection) are retried for a while, and then reported in one line.
"""

import contextlib
import functools
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url
from typing_extensions import override

from wind.errors import ConfigError, StageError, first_line
from wind.machine.environment import direct, variables
from wind.store.leases import Lease, ObjectVersion, Versioned, lease
from wind.store.object_files import RANGE_BYTES, ObjectFiles, RangedStorage
from wind.store.storage import Entry, Held, checked_name

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEMES: Final = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
RETRY: "Final[RetryConfig]" = {
    "max_retries": 10,
    "backoff": {
        "init_backoff": timedelta(seconds=0.1),
        "max_backoff": timedelta(seconds=4),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=60),
}
CLIENT: "Final[ClientConfig]" = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),
}
PART_BYTES: Final = 8 * 2**20  # least size of a part: an upload has at most ten thousand
# How obstore reports a connection that was reset, and one that it retried.
RESET: Final = "error sending request"
RETRIED: Final = " retries"
# Waits between attempts after a connection was reset.
SECONDS_TO_WAIT: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0, 4.0)

P = ParamSpec("P")
R = TypeVar("R")


class _ConnectionResetError(StageError):
    """A connection was reset, and obstore did not retry."""


def _retried(method: Callable[P, R]) -> Callable[P, R]:
    """Retry an idempotent `method` after a reset connection, which obstore does not."""

    @functools.wraps(method)
    def retried(*args: P.args, **kwargs: P.kwargs) -> R:
        for seconds in SECONDS_TO_WAIT:
            try:
                return method(*args, **kwargs)
            except _ConnectionResetError:
                time.sleep(seconds)
        return method(*args, **kwargs)

    return retried


class ObjectStorage(RangedStorage, Versioned):
    """Storage under a prefix of a bucket.

    Raises ConfigError if `root` is no URL of an object store, or contains a secret.
    """

    def __init__(self, root: str) -> None:
        self.url = self.address = root.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme.lower() not in SCHEMES or not parts.netloc:
            raise ConfigError(
                f"root {_safe(root)} cannot be opened: name a folder, or s3://BUCKET/PREFIX, "
                "gs://... or az://..."
            )
        # Azure writes buckets as abfs://container@account. A colon before the @ would be a
        # password.
        if (
            ":" in parts.netloc.rpartition("@")[0]
            or parts.query
            or parts.fragment
            or (parts.username and "s3" in parts.scheme)
        ):
            raise ConfigError(
                f"root {_safe(root)} holds more than a bucket and a prefix: "
                "credentials belong in the environment"
            )
        self.local = cache_folder(self.url)
        try:
            with variables(direct()):  # this call reads the proxy settings
                self._store: Any = from_url(
                    self.url,
                    retry_config=RETRY,
                    client_options={**CLIENT, "allow_http": _allows_http()},
                )
        except (BaseError, ValueError) as error:
            raise ConfigError(f"root {self.url} cannot be opened: {_reason(error)}") from error

    @override
    @_retried
    def read(self, name: str) -> bytes:
        with self._requesting(name):
            return bytes(self._store.get(name).bytes())

    @override
    @_retried
    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self._requesting(name):
            return bytes(self._store.get_range(name, start=start, length=length))

    @override
    def chunks(self, name: str) -> Iterator[bytes]:
        size = self._head(name)
        for start in range(0, size, RANGE_BYTES):
            yield self.read_range(name, start, min(RANGE_BYTES, size - start))

    @override
    def size(self, name: str) -> int | None:
        try:
            return self._head(name)
        except FileNotFoundError:
            return None

    @override
    def files(self, folder: str) -> Iterator[Entry]:
        for entry in sorted(self._list(folder), key=lambda entry: str(entry["path"])):
            yield Entry(entry["path"], entry["size"], entry["last_modified"].timestamp())

    @override
    @_retried
    def names(self, folder: str) -> list[str]:
        with self._requesting(folder):
            found = self._store.list_with_delimiter(folder or None)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    @override
    @_retried
    def write(self, name: str, content: bytes) -> None:
        with self._putting(name):
            self._store.put(name, content, use_multipart=False)

    @override
    def create(self, name: str, content: bytes) -> bool:
        return self.create_version(name, content) is not None

    @override
    @_retried
    def put(self, name: str, path: Path) -> None:
        size = path.stat().st_size
        part = max(PART_BYTES, size // 9_000)
        with self._putting(name):
            self._store.put(name, path, use_multipart=size > part, chunk_size=part)

    @override
    @contextlib.contextmanager
    def building(self, name: str) -> Iterator[Path]:
        with self._scratch(name) as path:
            yield path
            self.put(name, path)

    @override
    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with self._scratch(name) as path:
            with path.open("wb") as file:
                for chunk in self.chunks(name):
                    file.write(chunk)
            yield path

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
        # The last file appears by a conditional put, so that of two publishers one is refused.
        held.check()
        for file in files:
            if isinstance(source, Path):
                self.put(f"{target}/{file}", source / file)
            else:
                self._copy(f"{source}/{file}", f"{target}/{file}")
        held.check()
        if not self.create(f"{target}/{last}", content) and not self._holds(
            f"{target}/{last}", content
        ):
            raise StageError(
                f"{self.url}/{target} was published by another process meanwhile: "
                "rerun to go on with that"
            )
        if isinstance(source, str):
            self.delete(source)

    @override
    @_retried
    def delete(self, name: str) -> None:
        names = [name, *(entry.name for entry in self.files(name))]
        with self._requesting(name), contextlib.suppress(FileNotFoundError):
            self._store.delete(names)

    @override
    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[Lease]:
        return lease(self, checked_name(name, self.url), wait=wait)

    @override
    @contextlib.contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.lock(name, wait=False))
            except BlockingIOError:
                yield False
            else:
                yield True

    @override
    def filesystem(self) -> pyarrow.fs.FileSystem:
        return pyarrow.fs.PyFileSystem(ObjectFiles(self))

    @override
    @_retried
    def read_version(self, name: str) -> tuple[bytes, ObjectVersion]:
        with self._requesting(name):
            found = self._store.get(name)
            return bytes(found.bytes()), _version(found.meta)

    @override
    @_retried
    def create_version(self, name: str, content: bytes) -> ObjectVersion | None:
        try:
            with self._putting(name):
                return _version(self._store.put(name, content, mode="create", use_multipart=False))
        except AlreadyExistsError:
            return None

    @override
    @_retried
    def replace_version(
        self, name: str, content: bytes, version: ObjectVersion
    ) -> ObjectVersion | None:
        try:
            with self._requesting(name):
                return _version(self._store.put(name, content, mode=version, use_multipart=False))
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return None

    @_retried
    def _head(self, name: str) -> int:
        """Return the size of the file `name`.

        Raises FileNotFoundError if there is none.
        """
        with self._requesting(name):
            return int(self._store.head(name)["size"])

    @_retried
    def _list(self, folder: str) -> list[Any]:
        """Return obstore's metadata of every file below `folder`."""
        with self._requesting(folder):
            return [entry for page in self._store.list(folder or None) for entry in page]

    @_retried
    def _copy(self, source: str, target: str) -> None:
        with self._requesting(source):
            self._store.copy(source, target)

    def _holds(self, name: str, content: bytes) -> bool:
        """Return whether a refused put had succeeded after all.

        Its answer may have been lost, and the request retried.
        """
        try:
            return self.read(name) == content
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _scratch(self, name: str) -> Iterator[Path]:
        """Yield a file of this machine that is removed after the block."""
        checked_name(name, self.url)
        folder = self.local / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix=f"scratch-{os.getpid()}-", dir=folder)
        os.close(descriptor)
        try:
            yield Path(path)
        finally:
            Path(path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _putting(self, name: str) -> Iterator[None]:
        """Translate the errors of a put: not found means no bucket."""
        try:
            with self._requesting(name):
                yield
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.url} has no bucket: make it first, or set `root` to one that is there"
            ) from error

    @contextlib.contextmanager
    def _requesting(self, name: str) -> Iterator[None]:
        """Translate obstore's errors to this project's; a refused condition passes unchanged."""
        checked_name(name, self.url)
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (FileNotFoundError, BaseError) as error:
            raise self._translated(error, name) from error

    def _translated(self, error: Exception, name: str) -> Exception:
        if "NoSuchBucket" in str(error):
            return ConfigError(
                f"{self.url} has no bucket: make it first, or set `root` to one that is there"
            )
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(f"{self.url}/{name} is not there")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return ConfigError(
                f"{self.url} refuses access: check the credentials in the environment, "
                "such as AWS_ACCESS_KEY_ID"
            )
        reason = _reason(error)
        kind = _ConnectionResetError if RESET in reason and RETRIED not in reason else StageError
        return kind(f"{self.url} does not answer as it should: {reason}; rerun when it does")


def cache_folder(url: str) -> Path:
    """Return this machine's cache folder for the store at `url`.

    Copies of models are there, among others. It is below $WIND_CACHE, $XDG_CACHE_HOME/wind or
    ~/.cache/wind.
    """
    home = os.environ.get("WIND_CACHE")
    folder = (
        Path(home)
        if home
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wind"
    )
    return folder.absolute() / hashlib.sha256(url.encode()).hexdigest()[:16]


def _allows_http() -> bool:
    """Return whether the environment allows plain HTTP, as for local servers."""
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    return any(os.environ.get(name, "").lower() in ("1", "true") for name in names)


def _version(meta: Any) -> ObjectVersion:
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None}


def _reason(error: BaseException) -> str:
    """Return the first line of an error, without HTML or URL signatures."""
    return _safe(first_line(error).partition(": <")[0])


def _safe(text: str) -> str:
    """Remove the parts of URLs in `text` that may contain a secret."""
    return re.sub(r"(//[^\s?]*)\?\S*", r"\1", re.sub(r"//[^/@\s]*:[^/@\s]*@", "//", text))
