"""`wind check` and `wind docs` on a finished run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "finished_recipe")]

Wind = Callable[..., tuple[int, str, str]]


def files(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("store", folder).rglob("*") if path.is_file()}


def test_old_versions_are_checked_again_and_shown(wind: Wind) -> None:
    stored = files("datasets") | files("runs/tiny/versions")
    code, out, _ = wind("check", "tiny", "--set", "checks.max_empty_share=1", "--json")
    assert code == 0
    results = json.loads(out)
    version = find_version(Store("store"), "tiny")
    # as it was checked by the run
    assert {name: result["key"] for name, result in results.items()} == version.check_results
    assert {name: result["expectations"] for name, result in results.items()} == version.checks

    code, out, line = wind(
        "check",
        "tiny@1",
        "--set",
        "checks.max_empty_share=1",
        "--set",
        "checks.min_mean_response_tokens=99",
    )
    assert code == 3
    assert "2 of 12 datasets of tiny@1 fail: generations/" in line
    assert "responses have at least 99 tokens on average" in line
    assert len(re.findall(r"^(eval_)?generations +failed", out, re.MULTILINE)) == 2
    assert files("datasets") | files("runs/tiny/versions") == stored

    code, out, _ = wind("docs", "tiny", "--out", "pages")
    assert (code, out) == (0, "pages/index.html\n")
    index = Path("pages/index.html").read_text()
    assert '<li class="failed"><b>2</b>failed</li>' in index
    links = re.findall(r'href="([^"]+)"', index)
    assert len(links) >= 12 + 2
    assert {str(path.relative_to("pages")) for path in Path("pages").rglob("*.html")} == {
        "index.html",
        *links,
    }
    assert not re.findall(r"https?://|\bsrc=|@import|url\(|<script|<link", index)
    code, out, _ = wind("docs", "tiny", "--json")
    assert json.loads(out) == {"index": "store/runs/tiny/docs/index.html", "files": len(links) + 1}

    code, out, _ = wind("show", "tiny")
    assert re.search(r"^generations .* \d+ passed", out, re.MULTILINE)
    assert "git checkout " in out or "of no git checkout" in out
    # of this process, and of its workers
    environments = set(re.findall(r"store/environments/[0-9a-f]{64}\.json", out))
    assert environments
    assert all(
        json.loads(Path(environment).read_text())["packages"] for environment in environments
    )


def test_a_version_of_an_older_layout_is_still_read(wind: Wind) -> None:
    path = Path("store/runs/tiny/versions/0001.json")
    content = json.loads(path.read_text())
    del content["check_results"], content["warnings"]
    path.write_text(json.dumps(content))
    (version,) = Versions(Store("store"), "tiny")
    assert version.check_results == {}
    assert wind("docs", "tiny", "--out", "pages")[0] == 0
    assert "✓" in Path("pages/index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("check", "nobody"), "no version is called 'nobody'"),
        (
            ("check", "tiny", "--set", "checks.max_ties=1"),
            "checks.max_ties is not a setting; did you mean checks.max_tie_share?",
        ),
        (("check", "tiny", "--set", "training.lr=1"), "is not a setting"),
        (
            ("check", "tiny", "--set", "checks.files=[nowhere.py]"),
            "checks.files nowhere.py is no Python file",
        ),
        (("docs", "nobody"), "no run is called 'nobody' in store (runs: tiny)"),
    ],
)
def test_a_wrong_argument_is_one_line(wind: Wind, arguments: tuple[str, ...], says: str) -> None:
    code, _, line = wind(*arguments)
    assert code == 2
    assert says in line
