"""A real HTTP server on loopback that judges and scores by rule, with faults on demand."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Verdict = Callable[[str, str], str]
BOUND = r"<<< {0} ([0-9a-f]{{16}})\n(.*?)\n>>> {0} \1"


def enclosed(text: str, name: str) -> str:
    """What a question has between the lines of `name`."""
    found = re.search(BOUND.format(name), text, re.DOTALL)
    assert found, f"no {name} in {text}"
    return found[2]


def longer(first: str, second: str) -> str:
    """The verdict of a judge without a bias: the longer response is better."""
    if len(first) == len(second):
        return "tie"
    return "A" if len(first) > len(second) else "B"


@dataclass
class Fake:
    """What the server does, and what it was asked."""

    models: Sequence[Mapping[str, Any]] = ({"id": "judge-1", "object": "model", "created": 1},)
    # the answer to a question
    answer: Callable[[str], str] = lambda text: longer(
        enclosed(text, "response A"), enclosed(text, "response B")
    )
    rewards: Callable[[Mapping[str, Any]], Any] = lambda said: {
        "rewards": [float(len(each)) for each in said["responses"]]
    }
    identity: Any = field(default_factory=lambda: {"identity": "lengths-1"})
    # of every so many requests, one is answered with this status
    fails_every: int = 0
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    tokens: tuple[int, int] = (100, 10)
    finish_reason: str = "stop"
    seconds: float = 0.0
    posts: list[dict[str, Any]] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    # of POSTs that were answered
    answered: int = 0
    under_way: int = 0
    most_under_way: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def got(self, path: str) -> tuple[int, Any]:
        with self._lock:
            self.gets.append(path)
        if path.endswith("/models"):
            return 200, {"object": "list", "data": list(self.models)}
        return (404, {"error": "no"}) if self.identity is None else (200, self.identity)

    def posted(self, path: str, said: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            self.posts.append(said)
            is_failing = bool(self.fails_every) and len(self.posts) % self.fails_every == 0
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        threading.Event().wait(self.seconds)
        with self._lock:
            self.under_way -= 1
        if is_failing:
            return self.status, {"error": "planted"}
        with self._lock:
            self.answered += 1
        if not path.endswith("/chat/completions"):
            return 200, self.rewards(said)
        prompt, completion = self.tokens
        content = self.answer(said["messages"][0]["content"])
        return 200, {
            "model": said["model"],
            "choices": [{"message": {"content": content}, "finish_reason": self.finish_reason}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
        }


class Server:
    """The server of a `Fake`, which may be stopped and started again at the same address."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        fake = self.fake
        sockets: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                sockets.append(self.connection)

            def do_GET(self) -> None:
                self._say(*fake.got(self.path))

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if fake.key is not None and self.headers["Authorization"] != f"Bearer {fake.key}":
                    self._say(401, {"error": "wrong key"})
                    return
                self._say(*fake.posted(self.path, json.loads(content)))

            def _say(self, status: int, value: Any) -> None:
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, header in fake.headers.items() if status >= 300 else ():
                    self.send_header(name, header)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *said: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._sockets = sockets
        self._server = Quiet(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Stop as if killed: what is under way is never answered."""
        if self._server is None:
            return
        self._server.shutdown()
        self._thread.join()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(2)
        self._server.server_close()
        self._server = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
