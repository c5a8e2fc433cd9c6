"""Limits that all requests to an endpoint share: a pace and a budget."""

import time
from threading import Condition, Lock

from wind.errors import StageError


class Pace:
    """Evenly spaced turns, at most so many a minute; any number if that is None."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = Lock()

    def wait(self) -> None:
        """Return when it is the caller's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._seconds
        if turn > now:
            time.sleep(turn - now)


class SpentError(StageError):
    """The next request could exceed the budget."""


class Budget:
    """A sum that requests may cost together.

    What a request may cost at most is reserved before it is sent, and settled when its cost is
    known. So the sum holds to the request, whatever is under way: a request that could exceed it is
    not sent. A request that does not fit only because of reservations waits for them.
    """

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self._limit = limit
        self._spent = spent
        self._reserved = 0.0
        self._changed = Condition()

    def reserve(self, most: float) -> None:
        """Reserve what a request may cost at most.

        Raises SpentError if it does not fit into what is left.
        """
        with self._changed:
            if self._limit is not None:
                while self._spent + self._reserved + most > self._limit:
                    if not self._reserved:
                        raise SpentError(
                            f"{self._spent:.6g} of {self._limit:g} are spent, and the next request "
                            f"may cost {most:.6g}"
                        )
                    self._changed.wait()
            self._reserved += most

    def settle(self, most: float, cost: float) -> None:
        """Put `cost` in place of a reservation."""
        with self._changed:
            self._reserved = max(0.0, self._reserved - most)
            self._spent += cost
            self._changed.notify_all()
