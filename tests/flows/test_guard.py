"""The embedded Prefect server as other programs, other users and pages of other origins see it,
those in a real browser.
"""

import contextlib
import http.client
import http.server
import json
import os
import socketserver
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.guard import authorization, read_secret
from flows.server import EmbeddedServer
from tests.browser import browser, program
from wind.errors import StageError

NOBODY = 65534
SECONDS = 60.0
ELSEWHERE = "evil.example"


@dataclass(frozen=True)
class Served:
    """A server with its UI, and a deployment of which flow runs can be made."""

    server: EmbeddedServer
    home: Path
    deployment: str

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def secret(self) -> str:
        return self.server.variables["PREFECT_API_AUTH_STRING"]

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: Any = None
    ) -> tuple[int, dict[str, str], str]:
        """The status, headers and body of the answer to a request that says exactly these headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.putrequest(method, path, skip_host=True)
        content = b"" if body is None else json.dumps(body).encode()
        for name, value in {
            **headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
        }.items():
            connection.putheader(name, value)
        connection.endheaders(content)
        with contextlib.closing(connection), connection.getresponse() as answer:
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read().decode(),
            )

    def known(self, method: str, path: str, body: Any = None) -> Any:
        """What the API answers its user, with the token that Prefect asks of who changes something."""
        headers = {"Host": self.host, "Authorization": authorization(self.secret)}
        token = json.loads(self.ask("GET", "/api/csrf-token?client=test", headers)[2])["token"]
        headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        deadline = time.monotonic() + SECONDS
        status, _, answer = self.ask(method, path, headers, body)
        # its database is busy: Prefect's client asks again, too
        while status == 503 and time.monotonic() < deadline:
            status, _, answer = self.ask(method, path, headers, body)
        assert status < 300, answer
        return json.loads(answer)

    def flow_runs(self) -> int:
        """How many flow runs there are."""
        return int(self.known("POST", "/api/flow_runs/count", {}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served") / "prefect"
    server = EmbeddedServer(home, services=True)
    before = os.umask(0)  # the secret's file is private whatever the user's mask lets through
    try:
        server.start()
    finally:
        os.umask(before)
    try:
        server.wait()
        here = Served(server, home, "")
        flow = here.known("POST", "/api/flows/", {"name": "continue"})["id"]
        deployment = here.known(
            "POST",
            "/api/deployments/",
            {"name": "tiny", "flow_id": flow, "enforce_parameter_schema": False},
        )
        yield Served(server, home, deployment["id"])
    finally:
        server.stop()


@pytest.mark.slow
def test_only_requests_of_its_own_host_and_origin_with_the_secret_are_answered(
    served: Served,
) -> None:
    own, other, before = served.host, f"localhost:{served.server.port}", served.flow_runs()
    known = {"Host": own, "Authorization": authorization(served.secret)}
    cookie = {"Host": own, "Cookie": f"wind-{served.server.port}={served.secret}"}
    create = f"/api/deployments/{served.deployment}/create_flow_run"
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/", None),
        ("GET", "/api/health", None),
        ("GET", "/docs", None),
        ("POST", create, {}),
    ]
    for method, path, body in asked:
        for wanted, headers in [
            (401, {"Host": own}),
            (401, {"Host": own, "Authorization": authorization("x" * 43)}),
            (401, {"Host": own, "Authorization": f"Bearer {served.secret}"}),
            (401, {"Host": own, "Cookie": f"wind-{served.server.port}=x; other={served.secret}"}),
            (403, {**known, "Host": other}),
            (403, {**known, "Host": f"{ELSEWHERE}:{served.server.port}"}),
            (403, {**known, "Host": "127.0.0.1"}),
            (403, {**known, "Host": f"{own}.{ELSEWHERE}"}),
            (403, {**known, "Origin": f"http://{other}"}),
            (403, {**known, "Origin": f"http://{ELSEWHERE}"}),
            (403, {**known, "Origin": f"https://{own}"}),
            (403, {**known, "Origin": "null"}),
            (403, {**cookie, "Sec-Fetch-Site": "cross-site"}),
            (403, {**cookie, "Sec-Fetch-Site": "same-site"}),
        ]:
            status, answered, said = served.ask(method, path, headers, body)
            assert (status, said.startswith("refused: "), said.count("\n")) == (wanted, True, 1), (
                method,
                path,
                headers,
                said,
            )
            assert not any(name.startswith("access-control") for name in answered)
    assert served.ask("POST", create, cookie, {})[0] == 401  # of a browser, but of which page?
    # without the token of that page
    assert served.ask("POST", create, {**cookie, "Origin": f"http://{own}"}, {})[0] == 403
    assert served.flow_runs() == before
    assert served.ask("GET", "/api/health", known)[::2] == (200, "true")
    assert served.ask("GET", "/api/health", {**cookie, "Origin": f"http://{own}"})[::2] == (
        200,
        "true",
    )
    status, answered, _ = served.ask(
        "OPTIONS", create, {**known, "Access-Control-Request-Method": "POST"}
    )
    assert not any(name.startswith("access-control") for name in answered)


@pytest.mark.slow
def test_a_request_that_names_no_host_or_two_is_refused(served: Served) -> None:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=30)
    ) as connection:
        connection.putrequest("GET", "/api/health", skip_host=True)
        for host in (served.host, ELSEWHERE):
            connection.putheader("Host", host)
        connection.putheader("Authorization", authorization(served.secret))
        connection.endheaders()
        assert connection.getresponse().status in (400, 403)
    assert served.ask("GET", "/api/health", {"Authorization": authorization(served.secret)})[0] in (
        400,
        403,
    )
    absolute = f"http://{served.host}/api/health"  # which a server may take for the host
    assert (
        served.ask(
            "GET", absolute, {"Host": ELSEWHERE, "Authorization": authorization(served.secret)}
        )[0]
        == 403
    )


@pytest.mark.slow
def test_a_web_socket_is_refused_like_a_request(served: Served) -> None:
    url, cookie = (
        f"ws://{served.host}/api/events/out",
        {"Cookie": f"wind-{served.server.port}={served.secret}"},
    )
    for headers in (
        {},
        {"Origin": f"http://{ELSEWHERE}"},
        {**cookie, "Origin": f"http://{ELSEWHERE}"},
        cookie,
    ):
        with (
            pytest.raises(InvalidStatus, match="HTTP 403"),
            connect(url, additional_headers=headers, proxy=None),
        ):
            raise AssertionError
    with (
        pytest.raises(InvalidStatus, match="HTTP 403"),
        connect(url, additional_headers={"Host": ELSEWHERE}, subprotocols=["prefect"], proxy=None),  # type: ignore[list-item]
    ):
        raise AssertionError
    for said in (
        '{"type": "auth", "token": "wrong"}',
        '{"type": "auth"}',
        '{"type": "filter", "filter": {}}',
        "[",
        b"\0",
    ):
        with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
            socket.send(said)
            with pytest.raises(ConnectionClosed):
                socket.recv(30)
    with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
        socket.send(json.dumps({"type": "auth", "token": served.secret}))
        assert json.loads(socket.recv(30)) == {"type": "auth_success"}


@pytest.mark.slow
def test_a_url_with_the_secret_signs_a_browser_in_and_is_not_kept(served: Served) -> None:
    status, answered, _ = served.ask(
        "GET", f"/flows?a=b&secret={served.secret}", {"Host": served.host}
    )
    assert (status, answered["location"]) == (303, f"http://{served.host}/flows?a=b")
    assert (
        answered["set-cookie"]
        == f"wind-{served.server.port}={served.secret}; Path=/; HttpOnly; SameSite=Strict"
    )
    assert served.ask("GET", "/?secret=wrong", {"Host": served.host})[0] == 401
    assert served.ask(
        "GET", "//evil.example/%2e%2e?secret=" + served.secret, {"Host": served.host}
    )[1]["location"].startswith(f"http://{served.host}/")
    assert (
        "set-cookie" not in served.ask("GET", f"/?secret={served.secret}", {"Host": ELSEWHERE})[1]
    )


@pytest.mark.slow
def test_the_secret_is_in_one_private_file_and_in_no_other_place(served: Served) -> None:
    path = served.home / "secret"
    assert read_secret(path) == served.secret
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert served.secret in served.server.page
    assert served.ask("GET", f"/?secret={served.secret}", {"Host": served.host})[0] == 303
    forms = [served.secret.encode(), authorization(served.secret).partition(" ")[2].encode()]
    files = [each for each in served.home.rglob("*") if each.is_file()]
    assert [each for each in files if any(form in each.read_bytes() for form in forms)] == [path]
    server = next(
        each
        for each in psutil.Process().children(recursive=True)
        if "flows.server" in each.cmdline()
    )
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert served.secret not in " ".join(process.cmdline())
    assert not any(served.secret in value for value in server.environ().values())
    path.chmod(0o640)
    with pytest.raises(StageError, match="is not this user's alone: remove it"):
        read_secret(path)
    path.chmod(0o600)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_read_the_secret(served: Served) -> None:
    said = {}
    # which that user could not enter in a session of tests
    folder = os.open(served.home, os.O_RDONLY)
    for name in ("secret", "server.log"):
        ended = subprocess.run(
            ["/bin/cat", f"/proc/self/fd/{folder}/{name}"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            pass_fds=[folder],
            capture_output=True,
            text=True,
            check=False,
        )
        said[name] = ended.stderr
    os.close(folder)
    assert "Permission denied" in said["secret"]
    assert said["server.log"] == ""


# ----------------------------------------------------------------------------------- a real browser

needs_a_browser = pytest.mark.skipif(program() is None, reason="no Chromium on this machine")

ATTACKS = """
(async () => {
    const url = `http://${host}/api/deployments/${deployment}/create_flow_run`;
    const body = JSON.stringify({parameters: {config: {reward: {function: "pty:spawn"}}}, state: {type: "SCHEDULED"}});
    const done = {};
    const attempt = async (name, work) => {
        const patience = new Promise(resolve => setTimeout(resolve, 1000, "no answer"));
        try { done[name] = await Promise.race([work(), patience]); } catch (error) { done[name] = error.name; }
    };
    let token = {};
    await attempt("read", async () => {
        const answer = await fetch(`http://${host}/api/csrf-token?client=page`, {credentials: "include"});
        token = {"Prefect-Csrf-Token": (await answer.json()).token, "Prefect-Csrf-Client": "page"};
        return answer.status;
    });
    for (const credentials of ["omit", "include"]) {
        const json = {"Content-Type": "application/json", ...token};
        await attempt(`json ${credentials}`, async () =>
            (await fetch(url, {method: "POST", body, headers: json, credentials})).status);
        await attempt(`plain ${credentials}`, async () => (await fetch(url, {method: "POST", body, credentials})).status);
        await attempt(`no-cors ${credentials}`, async () =>
            (await fetch(url, {method: "POST", body, mode: "no-cors", credentials})).status);
    }
    await attempt("beacon", async () => navigator.sendBeacon(url, body));
    await attempt("web socket", () => new Promise((resolve, reject) => {
        const socket = new WebSocket(`ws://${host}/api/events/out`, "prefect");
        socket.onopen = () => resolve("open");
        socket.onerror = () => reject(new Error("closed"));
    }));
    for (const encoding of ["text/plain", "application/x-www-form-urlencoded"]) {
        await attempt(`form ${encoding}`, () => new Promise(resolve => {
            const frame = document.body.appendChild(document.createElement("iframe"));
            const form = document.body.appendChild(document.createElement("form"));
            frame.name = form.target = `frame ${encoding}`;
            Object.assign(form, {method: "post", action: url, enctype: encoding});
            const field = form.appendChild(document.createElement("input"));
            [field.name, field.value] = [body.slice(0, -1) + ',"x":"', '"}'];
            frame.onload = () => resolve("sent");
            form.submit();
        }));
    }
    await attempt("image", () => new Promise(resolve => {
        const image = new Image();
        image.onload = image.onerror = event => resolve(event.type);
        image.src = `http://${host}/api/flow_runs/count`;
    }));
    return done;
})()
"""


class Page(http.server.BaseHTTPRequestHandler):
    """A page of somebody else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page</title><body>")

    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextlib.contextmanager
def site_of_somebody() -> Iterator[int]:
    """The port of another server on this machine, for the block."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def attacks(served: Served) -> str:
    return (
        f"const host = {json.dumps(served.host)}, deployment = {json.dumps(served.deployment)};"
        + ATTACKS
    )


@pytest.mark.slow
@needs_a_browser
def test_no_page_of_another_origin_makes_a_flow_run_even_in_a_browser_that_is_signed_in(
    served: Served,
) -> None:
    before = served.flow_runs()
    with site_of_somebody() as port, browser(f"MAP {ELSEWHERE} 127.0.0.1") as page:
        for is_signed_in in (False, True):
            if is_signed_in:
                page.go(served.server.page)
            for origin in (f"{ELSEWHERE}:{port}", f"localhost:{port}", f"127.0.0.1:{port}"):
                page.go(f"http://{origin}/")
                done = page.run(attacks(served))
                assert done["web socket"] == "Error", (origin, done)
                assert {
                    value
                    for name, value in done.items()
                    if name.split()[0] in ("read", "json", "plain")
                } == {"TypeError"}, done
                assert served.flow_runs() == before, (origin, is_signed_in, done)
        # A name of somebody else that suddenly means this machine makes the page one of the same
        # origin.
        page.go(f"http://{ELSEWHERE}:{served.server.port}/")
        assert "refused: this server answers as 127.0.0.1:" in page.run("document.body.innerText")
        assert (
            "open"
            not in page.run(
                attacks(served).replace(json.dumps(served.host), "location.host")
            ).values()
        )
        assert served.flow_runs() == before
        # The same attempts are no attack, and succeed, where they come from the server's own page.
        page.go(f"http://{served.host}/api/health")
        done = page.run(attacks(served))
        assert (done["read"], done["json include"], done["web socket"]) == (200, 201, "open"), done
    assert served.flow_runs() == before + 1


@pytest.mark.slow
@needs_a_browser
def test_the_page_works_at_a_click_on_the_printed_url(served: Served) -> None:
    calls = "performance.getEntriesByType('resource').filter(each => each.name.includes('/api/'))"
    with browser() as page:
        page.go(f"http://{served.host}/")
        assert page.run("document.body.innerText").startswith(
            "refused: the secret is missing or wrong: open the URL"
        )
        page.go(served.server.page)
        page.wait("document.body.innerText.includes('Dashboard')")
        page.wait(f"{calls}.length >= 3")
        assert page.run(
            f"[...new Set({calls}.map(each => Math.floor(each.responseStatus / 100)))]"
        ) == [2]
        assert served.secret not in page.run(
            "location.href + document.cookie + JSON.stringify({...localStorage})"
        )
        page.go(f"http://{served.host}/deployments")
        page.wait("document.body.innerText.includes('tiny')")
