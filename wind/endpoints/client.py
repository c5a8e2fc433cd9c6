"""A client for HTTP endpoints that answer JSON with JSON.

A request that fails for a reason that may pass (no connection, no answer in time, 408, 429, 5xx) is
tried again after a while: twice as long each time, with jitter, or as long as the server asks. Of
several replicas each takes its turn; one that fails is left alone for some seconds. A proxy that
the environment names is not used for loopback, and redirects are not followed, so that a key goes
nowhere else.
"""

import functools
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import islice
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import stamina

from wind.config.endpoints import Connection
from wind.endpoints import count
from wind.endpoints.limits import Budget, Pace
from wind.errors import ConfigError, InputError, StageError, first_line, shown
from wind.nesting import json_value

T = TypeVar("T")
R = TypeVar("R")
# gets the JSON at a path
Get = Callable[[str], Any]

# seconds
FIRST_WAIT: Final = 0.25
LONGEST_WAIT: Final = 15.0
LONGEST_WISH: Final = 300.0
FIRST_REST: Final = 2.0
LONGEST_REST: Final = 60.0
# characters of what a server says
LONGEST_SAID: Final = 200
# statuses that another attempt may not get
PASSING: Final = frozenset({408, 425, 429, *range(500, 600)})
# those of a server that is not there, though something in front of it is
ABSENT: Final = frozenset({502, 503, 504})

# Retries are counted here; the library would log each of them.
stamina.instrumentation.set_on_retry_hooks([])


class Unanswered(Exception):  # noqa: N818  # never leaves this module
    """A request that may be tried again, after `seconds` if the server says when."""

    def __init__(
        self, said: str, url: str, *, seconds: float | None = None, may_cost: bool = False
    ) -> None:
        super().__init__(said)
        self.url = url
        self.seconds = seconds
        self.may_cost = may_cost


class Endpoint:
    """One or several replicas of a server, for the duration of a block.

    `setting` is the name of the section in messages, such as "reward". `vouch` is called with what
    gets a path from a replica, before the replica is first asked and whenever it comes back; it
    raises an error if the replica is not what it should be. May be used from several threads.
    """

    def __init__(
        self,
        connection: Connection,
        setting: str,
        *,
        budget: Budget | None = None,
        vouch: Callable[[Get], None] | None = None,
    ) -> None:
        self._connection = connection
        self._setting = setting
        self._budget = budget
        self._vouch = vouch
        self._pace = Pace(connection.requests_per_minute)
        # the first error, after which nothing is sent
        self._failed: BaseException | None = None
        self._lock = Lock()
        self._turn = 0
        self._replicas = [_Replica(url, connection, self._headers()) for url in connection.urls]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for replica in self._replicas:
            self._open.enter_context(replica.client)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def post(
        self,
        path: str,
        content: bytes,
        *,
        most: float = 0.0,
        cost: Callable[[Any], float] | None = None,
    ) -> Any:
        """Send JSON to `path`, and return the answer.

        `most` is what the request may cost, `cost` tells what an answer did. Raises StageError if
        no replica answers or the budget is spent, ConfigError for a key that is refused, and
        InputError for any other refusal and for an answer that is no JSON.
        """
        return self._retried(lambda: self._once(path, content, most, cost))

    def each(self, look: Callable[[Get], R]) -> dict[str, R]:
        """Return what `look` finds at every replica that answers, by address.

        `look` is given what gets a path. Raises StageError if no replica answers, and what `look`
        raises.
        """
        found: dict[str, R] = {}
        failed: StageError | None = None
        for replica in self._replicas:
            try:
                found[replica.url] = look(functools.partial(self._got, replica))
            except StageError as error:
                failed = error
        if failed is not None and not found:
            raise failed
        return found

    def map(self, ask: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield `ask` of every item, as they are done.

        No more than `concurrency` are under way. The first error ends all of them.
        """
        with ThreadPoolExecutor(self._connection.concurrency) as threads:
            todo = iter(items)
            asked = functools.partial(self._noting_failure, ask)
            running = {
                threads.submit(asked, item)
                for item in islice(todo, 2 * self._connection.concurrency)
            }
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                if self._failed is not None:
                    raise self._failed
                for future in done:
                    yield future.result()
                running |= {threads.submit(asked, item) for item in islice(todo, len(done))}

    def _noting_failure(self, ask: Callable[[T], R], item: T) -> R:
        try:
            return ask(item)
        except BaseException as error:
            with self._lock:
                self._failed = self._failed or error
            raise

    def _headers(self) -> dict[str, str]:
        variable = self._connection.api_key_variable
        if variable is None:
            return {}
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(
                f"{self._setting}.api_key_variable names {variable}, which is not set: export it"
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"{self._setting}.api_key_variable names {variable}, which holds characters that "
                "no key has: export it again"
            )
        return {"Authorization": f"Bearer {key}"}

    def _got(self, replica: "_Replica", path: str) -> Any:
        return self._retried(lambda: self._answer(replica, replica.send("GET", path, None)))

    def _retried(self, once: Callable[[], R]) -> R:
        seconds = self._connection.retry_seconds
        try:
            for attempt in stamina.retry_context(
                on=self._back_off,
                attempts=None,
                timeout=seconds,
                wait_initial=FIRST_WAIT,
                wait_max=LONGEST_WAIT,
                wait_jitter=FIRST_WAIT,
            ):
                with attempt:
                    if self._failed is not None:
                        raise self._failed
                    return once()
        except Unanswered as error:
            cure = (
                "start it, or correct the address"
                if self._connection.asks_identity
                else f"start it, correct the address, or raise {self._setting}.retry_seconds"
            )
            raise StageError(
                f"{self._setting}.url: {error.url} gave no answer in {seconds:g} seconds "
                f"({first_line(error)}): {cure}"
            ) from None
        raise AssertionError("every attempt returns or raises")

    def _back_off(self, error: Exception) -> bool | float:
        """Return whether to try again, or after how many seconds."""
        if not isinstance(error, Unanswered) or self._failed is not None:
            return False
        count(retries=1)
        if error.seconds is not None:
            return min(error.seconds, LONGEST_WISH) * (1 + random.random() / 10)
        now = time.monotonic()
        if any(each.rests_until <= now for each in self._replicas if each.url != error.url):
            return 0.0
        return True

    def _once(
        self, path: str, content: bytes, most: float, cost: Callable[[Any], float] | None
    ) -> Any:
        replica = self._next()
        if self._vouch is not None and not replica.is_vouched_for:
            self._vouch(lambda path: self._answer(replica, replica.send("GET", path, None)))
            replica.is_vouched_for = True
        if self._budget is not None:
            self._budget.reserve(most)
        # what is lost on its way has its price all the same
        spent = most
        try:
            self._pace.wait()
            count(requests=1)
            response = replica.send("POST", path, content)
            if not response.is_success:
                spent = 0.0
            answer = self._answer(replica, response)
            if cost is not None:
                spent = cost(answer)
            return answer
        except Unanswered as error:
            spent = most if error.may_cost else 0.0
            raise
        finally:
            if spent:
                count(cost=spent)
            if self._budget is not None:
                self._budget.settle(most, spent)

    def _next(self) -> "_Replica":
        """Return the replica whose turn it is: of those at rest, the one that rests least."""
        with self._lock:
            now = time.monotonic()
            turns = self._replicas[self._turn :] + self._replicas[: self._turn]
            replica = min(turns, key=lambda each: max(each.rests_until, now))
            self._turn = (self._replicas.index(replica) + 1) % len(self._replicas)
        return replica

    def _answer(self, replica: "_Replica", response: httpx.Response) -> Any:
        """Return the JSON of an answer.

        Raises Unanswered for a status that may pass, and the errors of `post`.
        """
        status, url = response.status_code, str(response.request.url)
        said = f"status {status}" + (f", {said}" if (said := _said(response)) else "")
        if status in PASSING:
            if status in ABSENT:
                replica.rest()
            raise Unanswered(said, url, seconds=_retry_after(response))
        if status in (401, 403):
            how = (
                "let it name the variable that holds a valid one"
                if self._connection.api_key_variable
                else "name the variable that holds one"
            )
            raise ConfigError(
                f"{self._setting}.api_key_variable: {url} refuses the key ({said}): {how}"
            )
        if response.is_redirect:
            raise ConfigError(
                f"{self._setting}.url: {url} sends requests elsewhere ({said}): name the address "
                "where they end"
            )
        if not response.is_success:
            raise InputError(f"{self._setting}.url: {url} refuses the request ({said})")
        try:
            return json_value(response.content)
        except ValueError as error:
            raise InputError(
                f"{self._setting}.url: {url} answered with no JSON ({first_line(error)}), "
                f"{shown(response.text[:LONGEST_SAID])}: correct the address"
            ) from None


class _Replica:
    """One server, its connections, and whether it is left alone."""

    def __init__(self, url: str, connection: Connection, headers: Mapping[str, str]) -> None:
        self.url = url
        self.rests_until = 0.0
        self.is_vouched_for = False
        self._rest = FIRST_REST
        is_here = is_loopback(url)
        self.client = httpx.Client(
            headers={**headers, "Content-Type": "application/json"},
            timeout=connection.timeout,
            limits=httpx.Limits(
                max_connections=connection.concurrency,
                max_keepalive_connections=connection.concurrency,
            ),
            # proxies, and certificates of authorities
            trust_env=not is_here,
            # loading those takes a while
            verify=not is_here or url.startswith("https:"),
        )

    def send(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        """Send a request, and return the answer whatever its status."""
        try:
            response = self.client.request(method, f"{self.url}{path}", content=content)
        except httpx.TransportError as error:
            self.rest()
            is_unsent = isinstance(
                error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout
            )
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise Unanswered(said, f"{self.url}{path}", may_cost=not is_unsent) from None
        self._rest = FIRST_REST
        return response

    def rest(self) -> None:
        """Leave the server alone for a while, twice as long each time."""
        self.is_vouched_for = False
        self.rests_until = time.monotonic() + self._rest
        self._rest = min(2 * self._rest, LONGEST_REST)


def is_loopback(url: str) -> bool:
    """Return whether `url` is on this machine by its name."""
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _said(response: httpx.Response) -> str:
    """Return the beginning of what a refusal says."""
    text = " ".join(response.text[:LONGEST_SAID].split())
    return "" if response.is_success else text


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a server asks to wait for."""
    given = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
