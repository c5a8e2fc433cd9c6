"""The Prefect API that a command talks to.

It is the one that PREFECT_API_URL names, or else an embedded server.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from flows.server import QUIET, EmbeddedServer
from wind.errors import ConfigError, first_line
from wind.machine.environment import variables

VARIABLE = "PREFECT_API_URL"
# Prefixes of the variables that say how to reach another server.
# With an embedded server they would be wrong.
OF_ANOTHER = (
    "PREFECT_API_",
    "PREFECT_CLIENT_CUSTOM_HEADERS",
    "PREFECT_CLOUD_",
    "PREFECT_PROFILE",
    "PREFECT_SERVER_",
)
INSTEAD = (
    f"start that server, correct {VARIABLE}, or unset it: then a run starts a server of its own"
)
# A server that runs stages beside itself, or whose database is locked, may be slow and is still there.
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_CONNECT = 1.5  # four tries
PROXIES = ("http", "https")  # what Prefect's client supports without another package
SOCKS = ("socks5", "socks5h")


@contextmanager
def prefect_api(home: Path) -> Iterator[EmbeddedServer | None]:
    """Provide a Prefect API for the block.

    Yields an embedded server that is starting up, with its URL set for the block, or None if
    PREFECT_API_URL names a running server. Raises ConfigError, in one line, if nothing answers at
    that URL, or if the environment names an unknown kind of proxy.
    """
    refuse_strange_proxies()
    if os.environ.get(VARIABLE):
        require_api(os.environ[VARIABLE])
        home.mkdir(parents=True, exist_ok=True)
        yield None
        return
    server = EmbeddedServer(home)
    try:
        with variables({**of_another_server(None), **server.variables}):
            server.start()
            yield server
    finally:
        server.stop()


def of_another_server(url: str | None) -> dict[str, None]:
    """Return the variables to unset for an embedded server.

    If `url` is None, the server is ours, and they would be wrong. Otherwise there are none.
    """
    return (
        {}
        if url
        else {
            name: None for name in os.environ if name.startswith(OF_ANOTHER) and name not in QUIET
        }
    )


def require_url(url: str) -> None:
    """Raise ConfigError unless `url`, the value of PREFECT_API_URL, is a URL."""
    try:
        parts = urlsplit(url)
        is_url = (
            parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        )
    except ValueError:  # a port that is not a number, or a host that is not an address
        is_url = False
    if not is_url:
        raise ConfigError(
            f"{VARIABLE} is {url!r}, which is no URL such as http://127.0.0.1:4200/api: {INSTEAD}"
        )


def require_api(url: str) -> None:
    """Raise ConfigError unless a Prefect API answers at `url`.

    `url` is the value of PREFECT_API_URL.
    """
    require_url(url)
    if reason := _silence(url):
        raise ConfigError(
            f"{VARIABLE} is {url} and no Prefect API answers there ({reason}): {INSTEAD}"
        )


def _silence(url: str) -> str | None:
    """Return why no suitable Prefect API answers at `url`.

    A suitable one fits this client. Returns None if one answers.
    """
    import httpx

    with warnings.catch_warnings():
        # Prefect looks for its home when it is imported. A new store has one only after the
        # server has answered.
        warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    timeout = httpx.Timeout(SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        try:
            # The client compares versions.
            with get_client(sync_client=True, httpx_settings={"timeout": timeout}) as client:
                error = client.api_healthcheck()
        except Exception as refused:
            error = refused
    return None if error is None else first_line(error.__cause__ or error)


def refuse_strange_proxies() -> None:
    """Raise ConfigError for a proxy that Prefect's HTTP client rejects.

    The client rejects an unknown kind of proxy even where it would not use it.
    """
    known = (*PROXIES, *(SOCKS if find_spec("socksio") else ()))
    for name in (
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        scheme, separator, _ = os.environ.get(name, "").partition("://")
        if separator and scheme.lower() not in known:
            more = ", and socks5 after `pip install socksio`" if scheme.lower() in SOCKS else ""
            raise ConfigError(
                f"{name} names a {scheme} proxy, and http and https ones are known{more}: change "
                "or unset it"
            )
