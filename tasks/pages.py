"""What Prefect's pages show of a run: no run needs it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings


@contextmanager
def if_the_server_answers() -> Iterator[None]:
    """Leave out the rest of the block, which tells Prefect's server something to show, if it does
    not answer at once.
    """
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        suppress(httpx.RequestError, PrefectHTTPStatusError),
    ):
        yield
