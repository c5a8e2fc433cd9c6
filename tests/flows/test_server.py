"""The servers that we start: their ports, and that there is none without the guard."""

import ast
import contextlib
from pathlib import Path

import pytest

from flows.server import EmbeddedServer
from wind.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

SERVING = {
    "create_server",
    "create_unix_server",
    "start_server",
    "start_unix_server",
    "listen",
    "HTTPServer",
}
MODULES = {
    "http.server",
    "socketserver",
    "xmlrpc.server",
    "wsgiref.simple_server",
    "uvicorn",
    "hypercorn",
    "flask",
}
ALLOWED = {
    ("flows/guard.py", "uvicorn"),  # the guard itself
    ("flows/guard.py", "create_server"),  # the socket that it is given
    ("flows/server.py", "listen"),
    ("flows/commands/looking.py", "listen"),
}


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    first = EmbeddedServer(tmp_path / "first")
    with contextlib.ExitStack() as stack:
        stack.callback(first.stop)
        with pytest.raises(
            ConfigError,
            match=rf"^port {first.port} is not available .*: choose another with --port",
        ):
            EmbeddedServer(tmp_path / "second", port=first.port)


def servers_in(source: str) -> set[str]:
    """What in a module's source serves, or may: names of calls, and modules that are made for it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {
                str(node.module),
                *(f"{node.module}.{each.name}" for each in node.names),
            } & MODULES
            found |= {each.name for each in node.names} & SERVING
        elif isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            found |= {name} & SERVING
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & MODULES  # run by `-m`, or imported by name
    return found


def test_every_server_of_ours_is_behind_the_guard() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for package in ("flows", "tasks", "data_checks", "wind")
        for path in (ROOT / package).rglob("*.py")
        for name in servers_in(path.read_text())
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import uvicorn\nuvicorn.run(app)", {"uvicorn"}),
        ("from uvicorn import run\nrun(app)", {"uvicorn"}),
        ("import socket\ns = socket.socket()\ns.bind(('', 80))\ns.listen()", {"listen"}),
        ("from http import server\nserver.HTTPServer(a, b)", {"http.server", "HTTPServer"}),
        ("from http.server import ThreadingHTTPServer", {"http.server"}),
        ("import asyncio\nasyncio.start_server(f)", {"start_server"}),
        ("from asyncio import start_server", {"start_server"}),
        ("python('-m', 'http.server')", {"http.server"}),
        ("import socketserver", {"socketserver"}),
        ("socket.create_connection(address)", set()),
    ],
)
def test_a_server_would_be_found(source: str, found: set[str]) -> None:
    assert servers_in(source) == found
