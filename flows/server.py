"""The embedded Prefect server: a child of this process that keeps its database under the store's root and dies with us.

Prefect's own ephemeral server outlives a killed parent.
"""

import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from wind import processes
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
        self._process: processes.Process | None = None
        self._turn = ExitStack()  # two that start at once on a new home would both make the tables

    def start(self) -> None:
        """Start the server without waiting for it; another with the same home that is starting comes first."""
        self._home.mkdir(parents=True, exist_ok=True)
        self._turn.enter_context(lock(self._home / "start.lock"))
        environment = {
            # It is ours alone, whatever the user has set for another.
            **{name: value for name, value in processes.environment().items() if not name.startswith("PREFECT_")},
            **QUIET,
            "PREFECT_HOME": str(self._home),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",  # in its working folder: no name is a URL
            "PREFECT_SERVER_UI_ENABLED": str(self._services).lower(),
            "PREFECT_UI_API_URL": self.url,
        }
        with (self._home / "server.log").open("ab") as log:
            self._process = processes.start(
                processes.python("-m", "flows.server", str(self.port), "services" if self._services else "api"),
                stdout=log,
                stderr=log,
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
            self._process.end()


def serve(port: int, *, services: bool) -> None:
    """Serve the Prefect API on loopback; with `services`, its scheduler and UI too."""
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral=not services), host="127.0.0.1", port=port, log_level="warning")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(int(sys.argv[1]), services=sys.argv[2] == "services")
