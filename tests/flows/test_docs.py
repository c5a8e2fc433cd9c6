"""`wind docs` on a store made by hand."""

from pathlib import Path

import pytest

from tests.flows.conftest import Wind
from tests.wind.versions_case import three_iterations
from wind.store.datasets import Store


def test_a_page_that_lies_among_those_of_a_run_goes(
    command: Wind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    three_iterations(Store("store"))
    planted = Path("store/runs/demo/docs/0001/planted.html")
    planted.parent.mkdir(parents=True)
    planted.write_text("<script>alert()</script>")
    assert command("docs", "demo")[:2] == (0, "store/runs/demo/docs/index.html\n")
    assert not planted.exists()
    assert "planted" not in Path("store/runs/demo/docs/index.html").read_text()
