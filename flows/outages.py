"""Prefect's server going away in the middle: a run needs it to begin a flow, and for nothing that
it makes.

The embedded server comes back, see `flows.server`, and is waited for. One that somebody else runs
may not: then what the flow made counts, its page in Prefect does not tell the end, and nothing
waits for an answer that will not come.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
from prefect import Flow
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from wind.errors import StageError, first_line
from wind.machine.terminal import complain

SECONDS_TO_COME_BACK = 2.0
SECONDS_TO_DRAIN = 5.0
TRIES_TO_RECONNECT = 3  # without a pause, so that a server that is gone costs no time

P = ParamSpec("P")
R = TypeVar("R")


def finished(flow: Flow[P, R]) -> Callable[P, R]:
    """`flow`, which returns what it made even if Prefect's server is gone by then."""
    made: list[R] = []
    impatience = ExitStack()

    @wraps(flow.fn)
    def body(*arguments: P.args, **named: P.kwargs) -> R:
        made.append(flow.fn(*arguments, **named))
        impatience.enter_context(
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0 if is_gone() else 1})
        )
        return made[0]

    kept: Flow[P, R] = flow.with_options()
    kept.fn = body

    def call(*arguments: P.args, **named: P.kwargs) -> R:
        with impatience:
            try:
                return kept(*arguments, **named)
            except httpx.HTTPError:
                if not made:
                    raise
        complain(
            f"the Prefect server at {PREFECT_API_URL.value()} is gone and does not know how this run ended"
        )
        return made[0]

    return call


def is_gone(patience: float = SECONDS_TO_COME_BACK) -> bool:
    """Whether nothing listens any more where Prefect's API was, and does not begin to within so
    many seconds.
    """
    parts = urlsplit(PREFECT_API_URL.value() or "")
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection(
                (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)),
                timeout=5,
            ):
                return False
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                return True
            time.sleep(0.2)
        except OSError:  # behind a proxy, for example: Prefect's own client will find out
            return False


@contextmanager
def told() -> Iterator[None]:
    """For the block, Prefect's server is told what happens; at its end what was not told yet is, if
    the server is there.

    Raises StageError, one line, if the server is gone when a flow is to begin.
    """
    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=TRIES_TO_RECONNECT)
    try:
        yield
    except httpx.RequestError as error:
        url = PREFECT_API_URL.value() or ""
        if not str(error.request.url).startswith(url):
            raise
        raise StageError(
            f"the Prefect server at {url} is gone ({first_line(error)}); rerun to go on from the finished shards"
        ) from None
    finally:
        EventsWorker.set_client_override(None)
        _drain()


def _drain() -> None:
    """Send what Prefect's threads still hold; without a server they would wait for it when this
    process ends.
    """
    services = list(APILogWorker._instances.values())  # type: ignore[misc]  # of all kinds: there is one mapping of them
    working = [(service._loop, service._task) for service in services]
    APILogWorker.drain_all(timeout=0 if services and is_gone(0) else SECONDS_TO_DRAIN)
    for loop, task in working:
        if loop is not None and task is not None:
            loop.call_soon_threadsafe(task.cancel)  # which does nothing to one that is done
