"""Outages of Prefect's server in the middle of a run.

A run needs the server to begin a flow, and for nothing that it produces. The embedded server
restarts (`flows.server`), and is waited for. A server that somebody else runs may not: then the
flow's results count, its page in Prefect does not show the end, and nothing waits for an answer
that will not come.
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
# without a pause, so that a vanished server costs no time
TRIES_TO_RECONNECT = 3

P = ParamSpec("P")
R = TypeVar("R")


def finished(flow: Flow[P, R]) -> Callable[P, R]:
    """Make `flow` return its result even if Prefect's server has vanished."""
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
            f"the Prefect server at {PREFECT_API_URL.value()} is gone "
            "and does not know how this run ended"
        )
        return made[0]

    return call


def is_gone(patience: float = SECONDS_TO_COME_BACK) -> bool:
    """Return True if nothing listens at Prefect's API, even after a while.

    Waits up to `patience` seconds for something to listen there again.
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
        # behind a proxy, for example: Prefect's own client will find out
        except OSError:
            return False


@contextmanager
def reporting() -> Iterator[None]:
    """Report the block's events to Prefect's server.

    At its end what is left is sent, unless the server has vanished. Raises StageError in one line
    if it has vanished when a flow is to begin.
    """
    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=TRIES_TO_RECONNECT)
    try:
        yield
    except httpx.RequestError as error:
        url = PREFECT_API_URL.value() or ""
        if not str(error.request.url).startswith(url):
            raise
        raise StageError(
            f"the Prefect server at {url} is gone ({first_line(error)}); "
            "rerun to resume from the finished shards"
        ) from None
    finally:
        EventsWorker.set_client_override(None)
        _drain()


def _drain() -> None:
    """Send what Prefect's threads still hold.

    Without a server they would wait for it when this process ends.
    """
    # one mapping has the services of all kinds
    services = list(APILogWorker._instances.values())  # type: ignore[misc]
    working = [(service._loop, service._task) for service in services]
    APILogWorker.drain_all(timeout=0 if services and is_gone(0) else SECONDS_TO_DRAIN)
    for loop, task in working:
        if loop is not None and task is not None:
            # has no effect on a task that is done
            loop.call_soon_threadsafe(task.cancel)
