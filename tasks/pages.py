"""Output for Prefect's web pages, which no run depends on."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings


@contextmanager
def if_the_server_answers() -> Iterator[None]:
    """Skip the rest of the block if Prefect's server does not answer.

    The block sends the server something to display; the server must answer at once.
    """
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        suppress(httpx.RequestError, PrefectHTTPStatusError),
    ):
        yield
