"""`wind export`, `wind import` and `wind push`: what they print, where they end, and a Hub on
loopback.
"""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from wind.store.versions import Version

Wind = Callable[..., tuple[int, str, str]]


def test_a_version_moves_to_another_store(versions: list[Version], command: Wind) -> None:
    code, out, _ = command("export", "demo@2", "demo.wind", "--format", "archive", "--json")
    assert code == 0
    assert json.loads(out) == {
        "path": "demo.wind",
        "files": 1,
        "bytes": Path("demo.wind").stat().st_size,
    }
    code, out, _ = command("import", "demo.wind", "--root", "elsewhere", "--json")
    facts = json.loads(out)
    assert (facts["version"], facts["id"], facts["versions"], facts["stored"]) == (
        "demo@2",
        versions[1].id,
        2,
        18,
    )
    code, out, _ = command("import", "demo.wind", "--root", "elsewhere", "--as", "again")
    assert out.startswith(f"again@2  {versions[1].id[:12]}  ")
    code, out, _ = command("versions", "--root", "elsewhere", "--json")
    assert [version["run"] for version in json.loads(out)] == ["again", "again", "demo", "demo"]
    code, out, _ = command("verify", "demo@2", "--root", "elsewhere", "--json")
    assert code == 0


def test_folders_for_other_tools(versions: list[Version], command: Wind) -> None:
    for form, name, shown in (
        ("hf", "demo", "README.md"),
        ("parquet", "demo:rewards", "part-00000.parquet"),
        ("model", "demo", "README.md"),
    ):
        code, _, _ = command("export", name, form, "--format", form)
        assert code == 0
        assert (Path(form) / shown).is_file()
        code, _, err = command("export", name, form, "--format", form)
        assert (code, err.count("\n")) == (2, 1)
        assert "already exists" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "demo", "out", "--format", "zip"),
        ("export", "nobody", "out", "--format", "hf"),
        ("export", "demo:rewards", "out", "--format", "archive"),
        ("export", "demo:model_out", "out", "--format", "archive"),
        ("export", "demo:model_out", "out", "--format", "parquet"),
        ("import", "nowhere.wind"),
        ("import", "store"),
        ("push", "demo", "org/name"),
        ("push", "demo", "hub:name"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(
    versions: list[Version], command: Wind, arguments: tuple[str, ...]
) -> None:
    code, _, err = command(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert not Path("out").exists()


def test_a_file_that_is_no_archive_is_one_line(versions: list[Version], command: Wind) -> None:
    Path("text").write_text("no archive" * 100)
    code, _, err = command("import", "text", "--root", "elsewhere")
    assert (code, err) == (
        1,
        "error: text is not an archive of `wind export`: it does not begin with archive.json\n",
    )
    assert not Path("elsewhere").exists()


# ------------------------------------------------------------------------------------------ the Hub


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a push needs: it makes repositories and takes commits whose files come
    inline.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        repository = "/".join(self.path.split("?")[0].split("/")[3:5])
        self._answer(
            {
                "id": repository,
                "private": self.server.private[repository],
                "siblings": [],
                "sha": "0" * 40,
            }
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.path.endswith("/repos/create"):
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            is_new = name not in self.server.private
            self.server.private.setdefault(
                name, wanted.get("private", wanted.get("visibility") == "private")
            )
            self._answer(
                {"url": f"{self._url()}/datasets/{name}", "id": name, "name": name},
                200 if is_new else 409,
            )
        elif "/preupload/" in self.path:
            files = [
                {**file, "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(
                        line["value"]["content"]
                    )
            self._answer(
                {
                    "commitOid": "1" * 40,
                    "commitUrl": f"{self._url()}/datasets/org/name/commit/{'1' * 40}",
                    "success": True,
                }
            )
        else:  # of the card's head
            self._answer({"errors": [], "warnings": []})

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        return


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def logged_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Hub's library knows a token and the address of `hub`, which it otherwise reads once,
    while it is imported.
    """
    url = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    return url


def test_a_version_is_pushed_and_kept_private(
    versions: list[Version], hub: Hub, logged_in: str, command: Wind
) -> None:
    code, out, _ = command("push", "demo@2", "hub:org/name", "--json")
    assert code == 0
    assert json.loads(out) == {"url": f"{logged_in}/datasets/org/name/commit/{'1' * 40}"}
    assert hub.private == {"org/name": True}
    assert hub.tokens == {"Bearer hf_secret"}
    assert versions[1].id in hub.files["README.md"].decode()
    assert {name for name in hub.files if name.startswith("generations/")} == {
        "generations/train-00000.parquet",
        "generations/train-00001.parquet",
        "generations/eval-00000.parquet",
    }
    hub.files.clear()
    hub.private["org/name"] = False
    code, _, err = command("push", "demo@2", "hub:org/name")
    assert (code, err) == (
        2,
        "error: org/name already exists and is public: give --public, or another name\n",
    )
    assert hub.files == {}
    code, out, _ = command("push", "demo:model_out", "hub:org/name", "--public")
    assert code == 0
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}


def test_a_push_without_token_or_network_is_one_line(
    versions: list[Version],
    hub: Hub,
    logged_in: str,
    command: Wind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.shutdown()
    hub.server_close()
    code, _, err = command("push", "demo:model_out", "hub:org/name")
    assert (code, err.count("\n")) == (1, 1)
    assert "the Hub cannot be reached" in err
    monkeypatch.setenv("HF_TOKEN", "")
    code, _, err = command("push", "demo:model_out", "hub:org/name")
    assert (code, err.count("\n")) == (2, 1)
    assert "log in with `hf auth login`" in err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = command("push", "demo:model_out", "hub:org/name")
    assert (code, err.count("\n")) == (2, 1)
    assert "unset HF_HUB_OFFLINE" in err
