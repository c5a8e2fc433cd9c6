"""The embedded Prefect server: a child of this process that keeps its database under the store's root and dies with us.

Prefect's own ephemeral server outlives a killed parent; this one watches a pipe that only we hold open.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from wind.errors import StageError
from wind.files import lock

START_SECONDS = 120.0
QUIET = {  # Prefect's and Great Expectations' own voices; a run speaks for itself, and reports to nobody
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class EmbeddedServer:
    """A Prefect API on a loopback port."""

    def __init__(self, home: Path, *, port: int | None = None, services: bool = False) -> None:
        self._home = home
        self._services = services
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = ExitStack()  # two that start at once on a new home would both make the tables

    def start(self) -> None:
        """Start the server without waiting for it; another with the same home that is starting comes first."""
        self._home.mkdir(parents=True, exist_ok=True)
        self._turn.enter_context(lock(self._home / "start.lock"))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},  # it is ours alone
            **QUIET,
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PREFECT_HOME": str(self._home),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",  # in its working folder: no name is a URL
            "PREFECT_SERVER_UI_ENABLED": str(self._services).lower(),
            "PREFECT_UI_API_URL": self.url,
        }
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(self.port), "services" if self._services else "api"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
                cwd=self._home,
            )

    def wait(self) -> None:
        """Return when the API answers. Raises StageError with the log's place if it does not come up."""
        deadline = time.monotonic() + START_SECONDS
        direct_to_it = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with self._turn:
            while time.monotonic() < deadline and self.alive():
                try:
                    with direct_to_it.open(f"{self.url}/health", timeout=5):
                        return
                except (urllib.error.URLError, OSError):
                    time.sleep(0.05)
        raise StageError(f"the embedded Prefect server did not start on port {self.port}: see {self._home}/server.log")

    def alive(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Kill the server and reap it; its database is transactional."""
        self._turn.close()
        if self._process is not None:
            if self.alive():
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()


def serve(port: int, *, services: bool) -> None:
    """Serve the Prefect API on loopback until standard input closes; with `services`, its scheduler and UI too."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral=not services), host="127.0.0.1", port=port, log_level="warning")


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(int(sys.argv[1]), services=sys.argv[2] == "services")
