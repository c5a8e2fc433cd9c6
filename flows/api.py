"""The Prefect API that a command talks to: the one that PREFECT_API_URL names, or an embedded
server.
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
# What says how another server is reached. With an embedded one it would be wrong.
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
SECONDS_TO_ANSWER = 5.0
SECONDS_TO_CONNECT = 1.5  # four tries
PROXIES = ("http", "https")  # what Prefect's client speaks without a further package
SOCKS = ("socks5", "socks5h")


@contextmanager
def prefect_api(home: Path) -> Iterator[EmbeddedServer | None]:
    """An embedded server that is starting up, or None where PREFECT_API_URL names a running one;
    sets the URL for the block.

    Raises ConfigError, one line, if nothing answers at that URL, or if the environment names a
    proxy of a kind that is not known.
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
    """The variables that would be wrong where `url` is None and the server is ours: they are to be
    unset.
    """
    return (
        {}
        if url
        else {
            name: None for name in os.environ if name.startswith(OF_ANOTHER) and name not in QUIET
        }
    )


def require_url(url: str) -> None:
    """Raise ConfigError if `url`, which PREFECT_API_URL names, is none."""
    try:
        parts = urlsplit(url)
        is_url = (
            parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        )
    except ValueError:  # a port that is no number, or a host that is no address
        is_url = False
    if not is_url:
        raise ConfigError(
            f"{VARIABLE} is {url!r}, which is no URL such as http://127.0.0.1:4200/api: {INSTEAD}"
        )


def require_api(url: str) -> None:
    """Raise ConfigError unless a Prefect API answers at `url`, which PREFECT_API_URL names."""
    require_url(url)
    if reason := _silence(url):
        raise ConfigError(
            f"{VARIABLE} is {url} and no Prefect API answers there ({reason}): {INSTEAD}"
        )


def _silence(url: str) -> str | None:
    """Why no Prefect API that fits this client answers at `url`; None if one does."""
    import httpx

    with warnings.catch_warnings():
        # Prefect looks for its home when it is imported. In a new store there is one once the
        # server has answered.
        warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    timeout = httpx.Timeout(SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        try:
            # which compares versions
            with get_client(sync_client=True, httpx_settings={"timeout": timeout}) as client:
                error = client.api_healthcheck()
        except Exception as refused:
            error = refused
    return None if error is None else first_line(error.__cause__ or error)


def refuse_strange_proxies() -> None:
    """Raise ConfigError for a proxy that Prefect's HTTP client refuses to know of, even where it
    would not use it.
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
