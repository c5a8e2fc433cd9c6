"""The guard in front of every server of ours.

It passes on requests to its own host, from its own origin, with its secret, and no others. A
browser sends requests to this machine for any page that is open in it, and a domain name of that
page's owner may resolve to this machine. So host and origin must be ours, and without the secret no
browser or program gets an answer. The process that starts the server generates the secret, and
keeps it in a file that only this user can read; a browser presents it once in the URL, and then as
a cookie.
"""

import base64
import errno
import hmac
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from wind.errors import ConfigError, StageError
from wind.files import atomic

HOST: Final = "127.0.0.1"
# URL parameter that signs a browser in; redacted by this name
PARAMETER: Final = "secret"
# of WebSockets whose first message authenticates
SUBPROTOCOL: Final = "prefect"
SAFE: Final = ("GET", "HEAD", "OPTIONS")
ADDED: Final = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


def authorization(secret: str) -> str:
    """Return the header with the secret.

    Prefect's client sends it for PREFECT_API_AUTH_STRING.
    """
    return f"Basic {base64.b64encode(secret.encode()).decode()}"


def write_secret(path: Path, secret: str) -> None:
    """Write the secret to a file that only this user can read.

    This holds from the moment that the file exists.
    """
    with atomic(path) as partial:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        partial.write_text(secret)


def read_secret(path: Path) -> str:
    """Read the secret from the file at `path`.

    Raises StageError if somebody else may have read or written it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, encoding="utf-8") as file:
        status = os.fstat(descriptor)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or stat.S_IMODE(status.st_mode) & 0o077
        ):
            raise StageError(f"{path} is not this user's alone: remove it, and start again")
        return file.read()


def listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback.

    Port 0 stands for any free port. Raises ConfigError if the port is taken.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ConfigError(
            f"port {port} is not available ({error.strerror}): "
            "choose another with --port, or 0 for any"
        ) from None


def sign_in_url(port: int, secret: str) -> str:
    """Return the URL with the secret, which signs a browser in.

    It is for the user's eyes only, and must not be stored.
    """
    return f"http://{HOST}:{port}/?{PARAMETER}={secret}"


def serve(application: Application, listener: socket.socket, secret: str) -> None:
    """Serve `application` behind the guard on a loopback socket, indefinitely.

    This is the only way to serve anything here: a test finds any other.
    """
    import uvicorn

    guard = Guard(application, port=listener.getsockname()[1], secret=secret)
    # No access log: it would contain the URL that signs a browser in.
    config = uvicorn.Config(
        guard, log_level="warning", access_log=False, proxy_headers=False, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listener])


class Guard:
    """ASGI application that passes on its user's requests and refuses the rest.

    A refusal is one line.
    """

    def __init__(self, application: Application, *, port: int, secret: str) -> None:
        self._application = application
        self._host = f"{HOST}:{port}"
        self._origin = f"http://{self._host}"
        # cookies belong to a host, whatever the port
        self._cookie = f"wind-{port}"
        self._secret = secret

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request or a WebSocket, or pass it on."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        headers = scope["headers"]
        shown = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get(PARAMETER)
        if refusal := self._foreign(headers):
            await _refuse(scope, send, 403, refusal)
        elif shown is not None and scope.get("method") == "GET":
            await self._sign_in(scope, send, shown)
        elif not (refusal := self._unknown(scope)):
            await self._application(
                {**scope, "headers": self._without_secret(headers)},
                receive,
                _closed_to_others(send),
            )
        elif (
            scope["type"] == "websocket"
            and SUBPROTOCOL in scope["subprotocols"]
            and not self._cookies(headers)
        ):
            await self._application(scope, *self._told_first(receive, send))
        else:
            await _refuse(scope, send, 401, refusal)

    def _foreign(self, headers: Headers) -> str | None:
        """Return why a request's host or origin is foreign, or None."""
        if _one(headers, b"host") != self._host:
            return f"this server answers as {self._host} only"
        if not set(_all(headers, b"origin")) <= {self._origin}:
            return f"this server answers pages of {self._origin} only"
        if not set(_all(headers, b"sec-fetch-site")) <= {"same-origin", "none"}:
            return "a link on another page leads here: copy the URL into the browser's address bar"
        return None

    def _unknown(self, scope: Message) -> str | None:
        """Return why a request does not show the secret, or None."""
        headers = scope["headers"]
        if _is_equal(_one(headers, b"authorization"), authorization(self._secret)):
            return None
        if not _is_equal(self._cookies(headers).get(self._cookie), self._secret):
            return "the secret is missing or wrong: open the URL that the command printed"
        # A browser adds the cookie to any request; for a request from a page, the origin tells
        # which page.
        if scope.get("method") not in SAFE and not _all(headers, b"origin"):
            return "a request that changes something, or a WebSocket, must name its origin"
        return None

    def _told_first(self, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Wrap a client's WebSocket so that it must show the secret.

        Nothing passes before the first message of Prefect's client shows it.
        """
        is_known = False

        async def receive_known() -> Message:
            nonlocal is_known
            message = await receive()
            if message["type"] == "websocket.receive" and not is_known:
                is_known = _is_equal(_token(message), self._secret)
                if not is_known:
                    return {
                        "type": "websocket.disconnect",
                        "code": 1008,
                        "reason": "the secret is missing or wrong",
                    }
            return message

        async def send_known(message: Message) -> None:
            if is_known or message["type"] != "websocket.send":
                await send(message)

        return receive_known, send_known

    async def _sign_in(self, scope: Message, send: Send, shown: str) -> None:
        """Give a browser with the secret a cookie and a plain URL."""
        if not _is_equal(shown, self._secret):
            await _refuse(
                scope,
                send,
                401,
                "the secret in the URL is that of another server: "
                "open the URL that the command printed last",
            )
            return
        rest = urlencode(
            [
                each
                for each in parse_qsl(scope["query_string"].decode("latin-1"))
                if each[0] != PARAMETER
            ]
        )
        address = self._origin + scope["raw_path"].decode("latin-1")
        headers = [
            (b"location", f"{address}{'?' if rest else ''}{rest}".encode("latin-1")),
            (
                b"set-cookie",
                f"{self._cookie}={self._secret}; Path=/; HttpOnly; SameSite=Strict".encode(),
            ),
            (b"cache-control", b"no-store"),
        ]
        await _answer(send, 303, b"", headers)

    def _cookies(self, headers: Headers) -> dict[str, str]:
        """Return the cookies of a request, by name."""
        pairs = [
            pair.strip().partition("=")
            for value in _all(headers, b"cookie")
            for pair in value.split(";")
        ]
        return {name: value for name, _, value in pairs}

    def _without_secret(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the headers without anything that the application must not log."""
        kept = [
            (name, value) for name, value in headers if name not in (b"authorization", b"cookie")
        ]
        cookies = [
            f"{name}={value}"
            for name, value in self._cookies(headers).items()
            if name != self._cookie
        ]
        return [*kept, (b"cookie", "; ".join(cookies).encode("latin-1"))] if cookies else kept


def _token(message: Message) -> str | None:
    """Return the secret that a message of Prefect's client shows, or None."""
    try:
        shown = json.loads(message.get("text") or "null")
    except ValueError:
        return None
    token = shown.get("token") if isinstance(shown, dict) and shown.get("type") == "auth" else None
    return token if isinstance(token, str) else None


def _closed_to_others(send: Send) -> Send:
    """Keep other pages from reading, framing or embedding an answer."""
    added = {name for name, _ in ADDED}

    async def closed(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if name.lower() not in added and not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": [*kept, *ADDED]}
        await send(message)

    return closed


async def _refuse(scope: Message, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
    else:
        await _answer(
            send,
            status,
            f"refused: {reason}\n".encode(),
            [(b"content-type", b"text/plain; charset=utf-8")],
        )


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await _closed_to_others(send)(
        {"type": "http.response.start", "status": status, "headers": [*headers, length]}
    )
    await send({"type": "http.response.body", "body": body})


def _is_equal(given: str | None, wanted: str) -> bool:
    """Compare in a time that does not reveal how much is equal."""
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def _all(headers: Headers, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]


def _one(headers: Headers, wanted: bytes) -> str | None:
    """Return the value of a header that occurs exactly once, else None."""
    found = _all(headers, wanted)
    return found[0] if len(found) == 1 else None
