"""`wind verify` on a finished run: every finding in one pass, and stages that are computed again."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import folder_of
from wind.store.references import find_version

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "finished_recipe")]

Wind = Callable[..., tuple[int, str, str]]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_finding_is_a_line_and_an_entry(wind: Wind) -> None:
    code, out, _ = wind("verify")
    assert code == 0
    assert out.split()[:2] == ["store", "whole"]
    version = find_version(Store("store"), "tiny")
    shards = [
        Path("store") / folder_of(version.content.datasets[name]) / "part-00000.arrow"
        for name in ("logps", "rewards")
    ]
    for path in shards:
        flip(path)
    code, out, line = wind("verify", "tiny@1")
    assert code == 1
    assert [
        any(each.startswith(f"{path} does not have the sha256") for each in out.splitlines())
        for path in shards
    ] == [
        True,
        True,
    ]
    assert line.startswith("error: store/datasets/")
    assert line.endswith("; and 1 more")
    code, out, _ = wind("verify", "tiny@1", "--json")
    assert code == 1
    assert {entry["file"] for entry in json.loads(out)["findings"]} == {
        str(path) for path in shards
    }
    code, out, line = wind("verify", "tiny@1:logps")
    assert (code, line) == (
        1,
        f"error: {shards[0]} does not have the sha256 of its manifest: its content was changed",
    )


@pytest.mark.parametrize("name", ["tiny", "tiny@1"])
def test_a_damaged_version_is_named(wind: Wind, name: str) -> None:
    path = Path("store/runs/tiny/versions/0001.json")
    path.write_text(path.read_text().replace('"iteration": 1', '"iteration": 2', 1))
    code, out, line = wind("verify", name)
    assert code == 1
    assert f"{path} does not have the digest that it carries: it was edited" in out
    assert line == f"error: {path} does not have the digest that it carries: it was edited"


def test_all_that_is_stored_has_the_modes_that_the_umask_gives() -> None:
    """What was imported as what was computed or trained: who may read one may read the other."""
    os.umask(umask := os.umask(0))
    paths = [
        path
        for part in ("datasets", "models", "sources")
        for path in Path("store", part).rglob("*")
    ]
    assert {path.parts[1] for path in paths} == {"datasets", "models", "sources"}
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}


def test_stages_are_reproduced(wind: Wind) -> None:
    code, out, _ = wind("verify", "tiny@1", "--reproduce", "win_rates")
    assert code == 0
    assert out.startswith("tiny@1:win_rates  reproduced  ")
    code, out, _ = wind(
        "verify", "tiny", "--reproduce", "rewards", "--scratch", "scratch", "--json"
    )
    assert code == 0
    result = json.loads(out)
    assert result["differences"] == []
    assert (
        result["computed"]
        == result["recorded"]
        == find_version(Store("store"), "tiny").content.datasets["rewards"].fingerprint
    )
    assert list(Path("scratch").iterdir()) == list(Path("store/partial/reproduced").iterdir()) == []
    assert wind("verify")[0] == 0
    for arguments in (
        ("verify", "--reproduce", "rewards"),
        ("verify", "tiny", "--reproduce", "breakfast"),
    ):
        code, _, line = wind(*arguments)
        assert (code, line[:7]) == (2, "error: ")


def test_what_is_not_reproduced_is_named_with_what_changed(wind: Wind) -> None:
    """The recorded spec of another estimator: with N = 4, self_counting gives (W + T/2 + 1/2) / 4
    for (W + T/2) / 3.
    """
    store = Store("store")
    win_rates = find_version(store, "tiny").content.datasets["win_rates"]
    path = store.path(win_rates) / "manifest.json"
    fields: dict[str, Any] = json.loads(path.read_bytes())
    fields["computed_by"]["spec"]["win_rate"]["estimator"] = "self_counting"
    fields["computed_by"]["code"] = "0" * 64
    fields["provenance"]["packages"]["numpy"] = "1.0"
    path.write_bytes(sealed_json.encode(fields))
    frame = store.frame(win_rates)
    then = frame["win_rate"].to_list()
    now = [(3 * value + 0.5) / 4 for value in then]
    differ = [
        row for row, pair in enumerate(zip(now, then, strict=True)) if abs(pair[0] - pair[1]) > 1e-9
    ]
    assert differ
    code, out, line = wind("verify", "tiny", "--reproduce", "win_rates", "--json")
    assert code == 1
    result = json.loads(out)
    (difference,) = result["differences"]
    first = f"{frame['prompt_id'][differ[0]][:12]}/{frame['sample_index'][differ[0]]}"
    assert difference.startswith(
        f"win_rate differs in {len(differ)} of {len(then)} rows, first in row {differ[0]} "
        f"({first}): "
    )
    assert any(
        each.startswith("the code of win_rates is ") and each.endswith("was 000000000000")
        for each in result["changed"]
    )
    assert any(
        each.startswith("numpy is ") and each.endswith("was 1.0") for each in result["changed"]
    )
    assert line == f"error: tiny:win_rates was not reproduced: {difference}"
    shutil.rmtree(store.path(find_version(store, "tiny").content.datasets["rewards"]))
    code, _, line = wind("verify", "tiny", "--reproduce", "win_rates")
    assert code == 1
    assert line.startswith("error: ")
