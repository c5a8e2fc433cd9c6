"""A real headless browser: Chromium, driven over its DevTools protocol."""

import base64
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

import axe_core_python  # type: ignore[import-untyped]  # it has no stubs
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


# Keys that type no character, with their codes.
NAMED_KEYS = {"Escape": 27, "Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One page of a browser.

    `complaints` are what its console calls an error or a warning, exceptions, and requests that
    failed or were refused, since it was opened.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.complaints: list[str] = []
        self._urls: dict[str, str] = {}
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
        there = "true" if url == "about:blank" else "location.href !== 'about:blank'"
        self.wait(f"document.readyState === 'complete' && {there}")

    def run(self, script: str) -> Any:
        """The value of a script in the page, of a promise the value that it comes to."""
        done = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def watch(self) -> None:
        """Collect complaints from now on."""
        for domain in ("Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def press(self, key: str) -> None:
        """Press and release a key, such as "j" or "Escape"."""
        named = {"windowsVirtualKeyCode": NAMED_KEYS[key]} if key in NAMED_KEYS else {"text": key}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **named)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        """Insert `text` where the focus is."""
        self._call("Input.insertText", text=text)

    def look(self, *, width: int = 1280, height: int = 900, theme: str = "light") -> None:
        """Set the size of the window, and whether its user prefers light or dark."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": theme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        shown = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shown["data"]))

    def violations(self) -> list[str]:
        """What axe finds seriously or critically wrong with the page for people with disabilities."""
        folder = Path(axe_core_python.__file__).parent
        self._call("Runtime.evaluate", expression=(folder / "axe.min.js").read_text("utf-8"))
        found = self.run("axe.run().then(found => found.violations)")
        return [
            f"{each['id']}: {each['help']}: {node['html'][:200]} {node.get('failureSummary')}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

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
            self._note(message.get("method", ""), message.get("params", {}))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, event: str, told: dict[str, Any]) -> None:
        """Keep what an event complains of."""
        if event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"console: {[each.get('value') for each in told['args']]}")
        elif event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            what = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(f"exception: {what}")
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"log: {told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self._urls[told["requestId"]] = told["request"]["url"]
        elif event == "Network.loadingFailed" and not told.get("canceled"):
            url = self._urls.get(told["requestId"])
            self.complaints.append(f"request: {url} {told['errorText']}")
        elif event == "Network.responseReceived" and told["response"]["status"] >= 400:
            answer = told["response"]
            self.complaints.append(f"response: {answer['url']} {answer['status']}")


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
