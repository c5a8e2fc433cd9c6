"""Variables for a block, and those that let this machine be reached past any proxy."""

import http.server
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from wind.machine.environment import direct, unset, variables

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_variables_are_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "1")
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(RuntimeError), variables({"OLD": None, "EMPTY": "2", "NEW": "3"}):  # noqa: PT012
        assert (os.environ.get("OLD"), os.environ["EMPTY"], os.environ["NEW"]) == (None, "2", "3")
        assert unset({"OLD": "4", "NEW": "5"}) == {"OLD": "4"}
        raise RuntimeError
    assert (os.environ["OLD"], os.environ["EMPTY"], os.environ.get("NEW")) == ("1", "", None)


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize("name", PROXIES)
def test_this_machine_is_reached_past_a_proxy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert direct() == {}  # there is nothing to go past
    monkeypatch.setenv(name, NOBODY)
    monkeypatch.setenv("no_proxy", "example.org, 10.0.0.0/8")
    with serving() as url, variables(direct()):
        assert (
            os.environ["NO_PROXY"]
            == os.environ["no_proxy"]
            == "example.org,10.0.0.0/8,127.0.0.1,localhost,::1"
        )
        assert urllib.request.urlopen(url, timeout=10).read() == b"here"
        assert httpx.get(url, timeout=10).text == "here"
        assert httpx.get(url.replace("127.0.0.1", "localhost"), timeout=10).text == "here"
        if name.lower() != "https_proxy":
            with pytest.raises(httpx.ConnectError):
                # which still goes to the proxy that nobody is
                httpx.get("http://example.com", timeout=10)


@contextmanager
def serving() -> Iterator[str]:
    class Here(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *arguments: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
