"""Leases: locks on an object store, renewed by their holders.

A lease is a small object, created, renewed and taken over by conditional puts alone, so that only
one of several contenders succeeds. A waiter takes it over when it has not changed for a whole lease
period by the waiter's own clock, so clocks need not be synchronized, or at once when its holder was
a process of this machine that has ended. A holder that was suspended for longer finds out at its
next renewal, or from `check`.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from wind.errors import StageError
from wind.nesting import json_value
from wind.store.storage import Held

LEASE_SECONDS = 30.0
RENEWALS = 3  # per lease
SECONDS_BETWEEN_POLLS = 0.5

# One state of an object: its ETag or its generation.
ObjectVersion = dict[str, str]


class Versioned(Protocol):
    """The part of an object store that leases need."""

    url: str

    def read_version(self, name: str) -> tuple[bytes, ObjectVersion]:
        """Return the content and version of `name`. Raises FileNotFoundError without one."""

    def create_version(self, name: str, content: bytes) -> ObjectVersion | None:
        """Create `name` and return its version, or None if it exists."""

    def replace_version(
        self, name: str, content: bytes, version: ObjectVersion
    ) -> ObjectVersion | None:
        """Replace `version` of `name` by `content` and return the new version.

        Returns None if `name` has another version or is gone.
        """

    def delete(self, name: str) -> None:
        """Remove `name`."""


class Lease(Held):
    """A lease that this process holds until it is released or lost."""

    def __init__(self, store: Versioned, name: str, seconds: float) -> None:
        self._store = store
        self._name = name
        self._seconds = seconds
        self._fields: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "holder": f"process {os.getpid()} on {platform.node()}",
        }
        self._fields |= {"machine": machine(), "pid": os.getpid(), "started": start_of(os.getpid())}
        self._renewals = 0
        self._version: ObjectVersion = {}
        self._renewed = 0.0
        self._is_lost = False
        self._turn = threading.Lock()
        self._ended = threading.Event()

    def acquire(self, *, wait: bool) -> None:
        """Acquire the lease, waiting for it if `wait`.

        Raises BlockingIOError if another process holds it and `wait` is False.
        """
        if self._create():
            return
        seen: ObjectVersion | None = None
        changes, since = -1, 0.0
        while True:
            now = clock()
            try:
                content, version = self._store.read_version(self._name)
            except FileNotFoundError:  # released meanwhile
                if self._create():
                    return
                continue
            other = _fields(content)
            # It was created after all, but the answer was lost on its way.
            if other.get("id") == self._fields["id"]:
                return self._holds(version, now)
            if version != seen:
                seen, changes, since = version, changes + 1, now
            # While the store does not answer, nobody can renew.
            if clock() - now > self._seconds / RENEWALS:
                since = clock()
            state = _state(other)
            if state == "ended" or now - since > self._seconds:
                if self._take_over(version, now):
                    return
                continue
            if not wait and (state == "alive" or changes):
                raise BlockingIOError(
                    errno.EWOULDBLOCK, str(other.get("holder", "another process")), self._name
                )
            time.sleep(min(SECONDS_BETWEEN_POLLS, self._seconds / 10))

    @override
    def check(self) -> None:
        with self._turn:
            self._renew()
            if self._is_lost:
                raise StageError(
                    f"the lock {self._store.url}/{self._name} was lost to another process, "
                    "which took this one for dead: rerun"
                )

    def keep(self) -> None:
        """Keep renewing the lease in time, until it is released or lost."""
        while not self._ended.wait(self._seconds / RENEWALS):
            with self._turn:
                if self._ended.is_set() or self._is_lost:
                    return
                # A store that does not answer is asked again: only an answer shows that the lease
                # is lost.
                with contextlib.suppress(StageError):
                    self._renew()

    def release(self) -> None:
        """Release the lease for the next holder."""
        self._ended.set()
        # If the store does not answer, the lease expires by itself.
        with self._turn, contextlib.suppress(StageError):
            if clock() - self._renewed > self._seconds / 2:
                self._renew()  # never delete the lease of another process
            if not self._is_lost:
                self._store.delete(self._name)

    def _create(self) -> bool:
        now = clock()
        version = self._store.create_version(self._name, self._content())
        if version is not None:
            self._holds(version, now)
        return version is not None

    def _renew(self) -> None:
        if self._is_lost:
            return
        now = clock()
        self._renewals += 1
        version = self._store.replace_version(self._name, self._content(), self._version)
        if version is None:
            version = self._answer_lost()
        if version is None:
            self._is_lost = True
        else:
            self._holds(version, now)

    def _answer_lost(self) -> ObjectVersion | None:
        """Return the version of the lease if it is ours after all.

        The answer to a renewal may have been lost, or the lease deleted.
        """
        try:
            content, version = self._store.read_version(self._name)
        except FileNotFoundError:
            return self._store.create_version(self._name, self._content())
        return version if _fields(content).get("id") == self._fields["id"] else None

    def _take_over(self, version: ObjectVersion, now: float) -> bool:
        taken = self._store.replace_version(self._name, self._content(), version)
        if taken is not None:
            self._holds(taken, now)
        return taken is not None

    def _holds(self, version: ObjectVersion, now: float) -> None:
        self._version, self._renewed = version, now

    def _content(self) -> bytes:
        # An ETag may be a digest of the content: the count gives each renewal its own version.
        return json.dumps(self._fields | {"renewals": self._renewals}).encode()


@contextlib.contextmanager
def lease(
    store: Versioned, name: str, *, wait: bool, seconds: float | None = None
) -> Iterator[Lease]:
    """Hold the lease `name` for the block.

    Raises BlockingIOError if it is taken and `wait` is False.
    """
    held = Lease(store, name, LEASE_SECONDS if seconds is None else seconds)
    held.acquire(wait=wait)
    thread = threading.Thread(target=held.keep, name=f"lease {name}", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.release()
        thread.join()


def clock() -> float:
    """Return monotonic seconds, including sleep where the system counts it."""
    return (
        time.clock_gettime(time.CLOCK_BOOTTIME)
        if hasattr(time, "CLOCK_BOOTTIME")
        else time.monotonic()
    )


@cache
def machine() -> str | None:
    """Return an id of this boot of the machine or container.

    None where the system has none.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()
    except OSError:
        return None


def start_of(pid: int) -> str | None:
    """Return when a process started, in system ticks; None if it ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]


def _state(fields: dict[str, Any]) -> str:
    """Return the state of a lease's holder: alive, ended or unknown."""
    if (
        machine() is None
        or fields.get("machine") != machine()
        or not isinstance(fields.get("pid"), int)
    ):
        return "unknown"
    return "alive" if start_of(fields["pid"]) == fields.get("started") else "ended"


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json_value(content)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
