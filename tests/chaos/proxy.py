"""A TCP proxy in front of the S3 server, which can be killed and started again where the server,
all in memory, cannot.
"""

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Literal

REQUEST = re.compile(rb"(GET|PUT|HEAD|POST|DELETE) /")
SECONDS_TO_ANSWER = 5.0

# of a request that is cut off: unsent, half sent, or sent and never answered
When = Literal["before", "half", "after"]


class Proxy:
    """Passes everything on to the server at `server`, and counts requests."""

    def __init__(self, server: str) -> None:
        host, _, port = server.partition(":")
        self._server = (host, int(port))
        self._listener: socket.socket | None = None
        self._port = 0
        self._open: set[socket.socket] = set()
        self._turn = threading.Lock()
        self._is_deaf = False
        self._act: Callable[[], object] = self.kill
        self.calm()
        self.restart()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def calm(self) -> None:
        """Count from nothing, and do nothing but pass on."""
        self.requests = 0
        self._at = 0
        self._when: When = "before"
        self._delay = 0.0
        self._delayed = 0

    def arm(self, at: int, act: Callable[[], object], when: When = "before") -> None:
        """Count from nothing, and call `act` at the request number `at`."""
        self.calm()
        self._at, self._act, self._when = at, act, when

    def slow(self, requests: int, seconds: float) -> None:
        """Let each of the next `requests` wait so long."""
        self._delayed, self._delay = requests, seconds

    def fail(self, requests: int, status: int) -> None:
        """Let the server answer the next `requests` with `status`."""
        connection = http.client.HTTPConnection(*self._server)
        connection.request(
            "POST", f"/faults?count={requests}&status={status}", headers={"Content-Length": "0"}
        )
        with connection.getresponse():
            connection.close()

    def kill(self) -> None:
        """Drop all connections, and refuse new ones."""
        with self._turn:
            if self._listener is not None:
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
                self._listener = None
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._is_deaf = False

    def restart(self) -> None:
        """Listen, again at the same port."""
        with self._turn:
            if self._listener is not None:
                return
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self._port))
            self._listener.listen(64)
            self._port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def kill_for(self, seconds: float) -> None:
        """Be killed now, and start again after so long."""
        self.kill()
        timer = threading.Timer(seconds, self.restart)
        timer.daemon = True
        timer.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
            except OSError:  # killed
                return
            self._open |= {client, server}
            for source, sink, work in (
                (client, server, self._requests),
                (server, client, self._answers),
            ):
                threading.Thread(target=self._pump, args=(source, sink, work), daemon=True).start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        work: Callable[[socket.socket, bytes], None],
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                work(sink, chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._turn:
            if source in self._open:
                self._open.discard(source)
                source.close()

    def _requests(self, server: socket.socket, chunk: bytes) -> None:
        if REQUEST.match(chunk):
            with self._turn:
                self.requests += 1
                is_struck = self.requests == self._at
                is_slow = self._delayed > 0
                self._delayed -= is_slow
            if is_slow:
                time.sleep(self._delay)
            if is_struck and self._when == "half":
                server.sendall(chunk[: len(chunk) // 2])
                self._act()
                return
            if is_struck and self._when == "after":
                self._is_deaf = True
                server.sendall(chunk)
                deadline = time.monotonic() + SECONDS_TO_ANSWER
                # until the answer comes, which is thrown away
                while self._is_deaf and time.monotonic() < deadline:
                    time.sleep(0.01)
                self._act()
                return
            if is_struck:
                self._act()
        server.sendall(chunk)

    def _answers(self, client: socket.socket, chunk: bytes) -> None:
        if self._is_deaf:
            self._is_deaf = False
            return
        client.sendall(chunk)
