"""The data that `wind ui` serves, and what it refuses."""

import html
import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from data_checks.results import result_name
from flows.pages.samples import failures
from flows.ui import Pages
from tests.wind.reading_case import PROMPTS, make_versions
from wind.errors import ConfigError
from wind.inspection.notes import LONGEST
from wind.store.datasets import Store
from wind.store.versions import Version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> list[Version]:
    return make_versions(store, tmp_path / "outside")


@pytest.fixture
def client(store: Store, versions: list[Version]) -> TestClient:
    return TestClient(Pages(store, "demo").application())


def test_the_first_run_and_its_pages(client: TestClient) -> None:
    assert client.get("/", follow_redirects=False).headers["location"] == "/runs/demo"
    answer = client.get("/runs/demo/samples")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in html.unescape(answer.text)
    assert "connect-src 'self'" in html.unescape(answer.text)
    assert client.get("/runs/other/samples").status_code == 404


def test_data_by_hand(client: TestClient) -> None:
    names = [each["name"] for each in client.get("/api/versions?run=demo").json()]
    assert names == ["demo@1", "demo@2"]
    found = client.get("/api/prompts?version=demo@2&where=rank_flips > 0").json()
    assert (found["total"], found["rows"][0]["text"]) == (1, "say b")
    told = client.get(f"/api/prompt?version=demo@2&id={PROMPTS[1]}").json()
    assert [each["response"] for each in told["responses"]] == ["b20", "b21"]
    steps = client.get(f"/api/over?version=demo@2&id={PROMPTS[1]}&sample=1").json()
    assert steps[1]["difference"] == [["-", 3], ["+", 3]]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/api/prompts", "the parameter version is missing"),
        ("/api/prompts?version=demo@9", "no version is called 'demo@9'"),
        ("/api/prompts?version=demo@2&where=(", "the filter at its end: expected a field"),
        ("/api/prompts?version=demo@2&page=x", "page is 'x'"),
        ("/api/prompt?version=demo@2&id=../x", "demo@2 has no prompt '../x'"),
        (f"/api/over?version=demo@2&id={PROMPTS[0]}&sample=-1", "sample is '-1'"),
        (f"/api/tokens?version=demo@2&id={PROMPTS[0]}", "no tokenizer.json"),
        ("/api/versions?run=../..", "no run is called '../..'"),
    ],
)
def test_a_mistake_is_one_line(client: TestClient, path: str, complaint: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_notes_are_kept_and_exported(client: TestClient, store: Store) -> None:
    note = {"prompt_id": PROMPTS[0], "flag": True, "note": "odd\n\u2028 😀"}
    assert client.put("/api/note?version=demo@2", json=note).status_code == 200
    kept = client.get(f"/api/note?version=demo@1&id={PROMPTS[0]}").json()
    assert (kept["note"], kept["flag"], kept["version"]) == (note["note"], True, "demo@2")
    (line,) = client.get("/api/notes?version=demo@2").text.splitlines()
    assert json.loads(line)["prompt"] == "say a"
    assert [path.name for path in (store.root / "runs/demo/notes").iterdir()] == [
        f"{PROMPTS[0]}.json"
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"prompt_id": "../../../x"}',
        b'{"prompt_id": "%s"}' % (b"f" * 32),  # no prompt of the run
        b'{"prompt_id": "%s", "note": "\\ud800"}' % PROMPTS[0].encode(),
        b'{"prompt_id": "%s", "other": 1}' % PROMPTS[0].encode(),
        b'{"prompt_id": "%s", "note": "%s"}' % (PROMPTS[0].encode(), b"x" * (LONGEST + 1)),
        b"x" * (13 * LONGEST),
    ],
    ids=range(8),
)
def test_what_is_no_note_is_not_written(client: TestClient, store: Store, body: bytes) -> None:
    answer = client.put("/api/note?version=demo@2", content=body)
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]
    assert not (store.root / "runs/demo/notes").exists()


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    client = TestClient(Pages(Store(tmp_path)).application())
    assert "no version in this store yet" in client.get("/").text
    with pytest.raises(ConfigError, match="no run is called 'demo'"):
        Pages(Store(tmp_path), "demo")


def test_failures_of_checks_are_counted_by_prompt(store: Store, versions: list[Version]) -> None:
    handle, key = versions[0].content.datasets["rewards"], "a" * 64
    rows = [{"prompt_id": PROMPTS[0], "sample_index": place} for place in (0, 1)]
    results = [
        {"success": False, "result": {"partial_unexpected_index_list": rows}},
        {"success": False, "result": {"partial_unexpected_index_list": rows[:1]}},
        {"success": True, "result": {"partial_unexpected_index_list": rows}},
        {"success": False, "result": {"observed_value": 1}},
    ]
    content = {
        "handle": handle.model_dump(),
        "success": True,
        "expectations": 4,
        "key": key,
        "suite": "",
        "path": "",
        "frames": {"rows": {"results": results}},
    }
    store.storage.write(result_name(handle, key), json.dumps(content).encode())
    version = versions[0].model_copy(update={"check_results": {"rewards": key, "gone": key}})
    assert failures(store, version) == {PROMPTS[0]: 2}
