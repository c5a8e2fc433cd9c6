"""The embedded Prefect server: a child process that ends with ours.

Its database lies under the store's root. Prefect's own ephemeral server outlives a killed parent.
Ours is restarted when it dies: the port stays open in the meantime, so that clients wait for the
answer, and the database is transactional.
"""

import secrets
import socket
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

from flows.guard import HOST, authorization, listen, read_secret, sign_in_url, write_secret
from flows.guard import serve as serve_guarded
from wind.errors import StageError
from wind.files import lock
from wind.machine import processes

START_SECONDS = 120.0
# failed restarts in a row
MOST_FAILURES = 3
# file in the server's home
SECRET_FILE = "secret"
# silences Prefect and Great Expectations; a run prints its own lines and reports to nobody
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class EmbeddedServer:
    """A Prefect API on a loopback port, guarded by a secret."""

    def __init__(self, home: Path, *, port: int = 0, services: bool = False) -> None:
        """Take the port, or any free one for 0.

        Raises ConfigError if it is taken.
        """
        self._home = home
        self._services = services
        # a new one each time: somebody else may have had access to the home
        self._secret = secrets.token_urlsafe(32)
        self._listener = listen(port)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/api"
        self._process: processes.Process | None = None
        self._is_wanted = False
        # guards the process
        self._change = threading.Lock()
        # two servers that start at once on a new home would both create the tables
        self._turn = ExitStack()

    @property
    def variables(self) -> dict[str, str]:
        """Variables by which Prefect's client reaches this server."""
        return {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self._secret}

    @property
    def page(self) -> str:
        """URL with the secret, which signs a browser in.

        It is for the user's eyes only, and must not be stored.
        """
        return sign_in_url(self.port, self._secret)

    def start(self) -> None:
        """Start the server without waiting for it.

        Another one that is starting in the same home goes first.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        if self._listener.fileno() < 0:
            self._listener = listen(self.port)
        self._turn.enter_context(lock(self._home / "start.lock"))
        self._is_wanted = True
        self._begin()

    def wait(self) -> None:
        """Wait until the API answers, and keep the server running.

        From then on it is restarted when it dies. Raises StageError with the log's path if it does
        not start.
        """
        with self._turn:
            if not self._answers():
                raise StageError(
                    f"the embedded Prefect server did not start on port {self.port}: "
                    f"see {self._home}/server.log"
                )
        threading.Thread(target=self._keep, name="keeper of Prefect's server", daemon=True).start()

    def alive(self) -> bool:
        """Return True if the server runs, or is being restarted."""
        return self._is_wanted and self._listener.fileno() >= 0

    def stop(self) -> None:
        """Kill the server and reap it; its database is transactional."""
        with self._change:
            self._is_wanted = False
            self._listener.close()
            if self._process is not None:
                self._process.end()
        self._turn.close()

    def _begin(self) -> None:
        """Start the process, unless the server has been stopped in the meantime."""
        environment = {
            # It is ours alone, so settings for other servers must not apply.
            **{
                name: value
                for name, value in processes.environment().items()
                if not name.startswith("PREFECT_")
            },
            **QUIET,
            "PREFECT_HOME": str(self._home),
            # relative to its working folder, since not every path can be part of a URL
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
            "PREFECT_SERVER_UI_ENABLED": str(self._services).lower(),
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.url.removesuffix("/api"),
            "PREFECT_UI_API_URL": self.url,
        }
        with self._change, (self._home / "server.log").open("ab") as log:
            if not self._is_wanted:
                return
            # visible neither in the arguments nor in the environment
            write_secret(self._home / SECRET_FILE, self._secret)
            descriptor = self._listener.fileno()
            self._process = processes.start(
                processes.python(
                    "-m", "flows.server", str(descriptor), "services" if self._services else "api"
                ),
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._home,
                pass_fds=(descriptor,),
            )

    def _answers(self) -> bool:
        """Return True if the server answers in time."""
        deadline = time.monotonic() + START_SECONDS
        direct_to_it = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        health = urllib.request.Request(
            f"{self.url}/health", headers={"Authorization": authorization(self._secret)}
        )
        while (
            time.monotonic() < deadline
            and self._process is not None
            and self._process.poll() is None
        ):
            try:
                with direct_to_it.open(health, timeout=5):
                    return True
            except OSError:
                time.sleep(0.05)
        return False

    def _keep(self) -> None:
        """Restart the server until it is stopped or fails to start."""
        failures = 0
        while self._process is not None and failures < MOST_FAILURES:
            self._process.wait()
            if not self._is_wanted:
                return
            failures += 1
            with suppress(OSError), lock(self._home / "start.lock"):
                self._begin()
                failures = 0 if self._answers() else failures
        # clients are refused at once and need not wait
        self._listener.close()


def serve(listener: socket.socket, *, services: bool) -> None:
    """Serve the Prefect API on `listener` to clients that have the secret.

    With `services`, serves its scheduler and UI too.
    """
    from prefect.server.api.server import create_app

    serve_guarded(create_app(ephemeral=not services), listener, read_secret(Path(SECRET_FILE)))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), services=sys.argv[2] == "services")
