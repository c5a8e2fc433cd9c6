"""A real headless browser: Chromium, driven over its DevTools protocol."""

import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

from wind.machine import processes

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
SECONDS = 60.0


def program() -> str | None:
    """The browser that this machine has; None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]

    def go(self, url: str) -> None:
        """Open a page as who types its URL does, or clicks on it in a terminal, and wait until it
        is loaded.
        """
        self._call("Page.enable")
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of a script in the page, of a promise the value that it comes to."""
        done = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Return when a script is true in the page."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, (
                f"never true: {condition}; {self.run('document.documentElement.outerHTML')[:2000]}"
            )
            time.sleep(0.1)

    def _call(self, method: str, **parameters: Any) -> Any:
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        number = next(self._numbers)
        self._connection.send(
            json.dumps({"id": number, "method": method, "params": parameters, **session})
        )
        while True:
            message = json.loads(self._connection.recv(SECONDS))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]


@contextmanager
def browser(hosts: str = "") -> Iterator[Browser]:
    """A new browser for the block; `hosts` is a rule such as `MAP evil.example 127.0.0.1`."""
    found = program()
    assert found is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        # A container has no sandbox to offer; the browser is to speak with this machine alone.
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
        ]
        options += [
            "--disable-background-networking",
            "--disable-component-update",
            "--remote-debugging-port=0",
        ]
        command = [
            found,
            *options,
            f"--user-data-dir={home}",
            f"--host-resolver-rules={hosts}",
            "about:blank",
        ]
        with open(os.devnull, "wb") as nothing:
            process = processes.start(
                command,
                env={**os.environ, "HOME": home},
                stdout=nothing,
                stderr=nothing,
                descendants=True,
            )
        try:
            with connect(
                _address(Path(home) / "DevToolsActivePort"), max_size=None, proxy=None
            ) as connection:
                yield Browser(connection)
        finally:
            process.end()


def _address(said: Path) -> str:
    """Where the browser listens, which it says in a file."""
    deadline = time.monotonic() + SECONDS
    while not said.exists() or len(lines := said.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline, "the browser did not start"
        time.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
