"""The results, errors and stored files of `validate`, for any suite."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data_checks.results import all_recorded, contents, failed, passed, recorded, result_name
from data_checks.validation import SUITES, validate
from wind.config.checks import ChecksConfig
from wind.errors import DataCheckError, DatasetError
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.nouns import STAGES, STUDIES

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain

Rows = list[dict[str, Any]]


def seven_nans(rows: Rows) -> None:
    for row in rows[2:9]:
        row["reward"] = float("nan")


def nan_and_a_lost_row(rows: Rows) -> None:
    rows[0]["reward"] = float("nan")
    rows.pop()


def page_of(store: Store, handle: Dataset) -> str:
    result = recorded(store, handle)
    assert result is not None
    return store.storage.read(result.path).decode()


def test_every_stage_has_a_suite() -> None:
    assert tuple(SUITES) == (*STAGES, *STUDIES)


def test_a_pass_is_recorded_with_its_page(chain: "Chain") -> None:
    handle = chain.dataset("rewards")
    result = validate(handle, chain.store, ChecksConfig())
    assert result == recorded(chain.store, handle)
    assert (result.handle, result.success, result.expectations) == (handle, True, 6)
    assert result.path == f"checks/rewards/{handle.fingerprint}/{result.key}.html"
    assert not failed(chain.store, handle)
    frames = contents(chain.store, handle)["frames"]  # type: ignore[index]
    assert [frame["statistics"]["evaluated_expectations"] for frame in frames.values()] == [5, 1]


def test_a_failure_is_one_line_that_says_where(chain: "Chain") -> None:
    handle = chain.dataset("rewards", seven_nans)
    with pytest.raises(DataCheckError) as caught:
        validate(handle, chain.store, ChecksConfig())
    (page,) = (chain.store.root / "checks" / "rewards" / handle.fingerprint).glob("*.html")
    keys = "000000000000/2, 000000000000/3, 000000000001/0, 000000000001/1, 000000000001/2"
    assert str(caught.value) == (
        f"{label(handle)} failed expect_column_values_to_not_be_null(reward), reward is a finite "
        "number: "
        f"7 of 16 rows fail: {keys}; see {page}"
    )
    assert caught.value.exit_code == 3


def test_a_failure_keeps_the_dataset_its_mark_and_its_page(chain: "Chain") -> None:
    handle = chain.dataset("rewards", nan_and_a_lost_row)
    with pytest.raises(
        DataCheckError,
        match=r"not_be_null\(reward\), .* 1 of 15 rows fail: 000000000000/0; 1 more failed; see",
    ):
        validate(handle, chain.store, ChecksConfig())
    assert chain.store.is_whole(handle)
    assert failed(chain.store, handle)
    page = page_of(chain.store, handle)
    assert "no row of the generations was lost: 1 of 16 generations fail: 000000000003/3" in page


@pytest.mark.parametrize(
    ("name", "fault", "found"),
    [
        (
            "prompts",
            lambda rows: rows.pop(3),
            "source_rows, accounted_rows.*: 1 of 1 totals fail: found \\[7.0, 6\\]; see",
        ),
        (
            "generations",
            lambda rows: [row.update(response_token_ids=[2]) for row in rows],
            r"on average: the value is 1\.0; see",
        ),
        (
            "training",
            lambda rows: rows[1].update(value=float("nan")),
            "1 of 6 rows fail: 1/loss; see",
        ),
        ("metrics", lambda rows: rows[1].update(n=0), "1 of 2 rows fail: 2/win_rate; see"),
    ],
)
def test_offenders_are_named_by_key_or_by_value(
    chain: "Chain", name: str, fault: Any, found: str
) -> None:
    with pytest.raises(DataCheckError, match=found) as caught:
        chain.check(name, fault)
    assert "\n" not in str(caught.value)


def test_a_threshold_rechecks_without_a_new_dataset(chain: "Chain") -> None:
    handle = chain.dataset("generations", lambda rows: rows[0].update(response=""))
    with pytest.raises(DataCheckError, match=r"at most 5\.0% of responses are empty: 1 of 16 rows"):
        validate(handle, chain.store, ChecksConfig())
    strict = recorded(chain.store, handle)
    loose = validate(handle, chain.store, ChecksConfig(max_empty_share=0.1))
    assert strict is not None
    assert strict.suite != loose.suite
    assert not failed(chain.store, handle)
    assert {result.key for result in all_recorded(chain.store, handle)} == {strict.key, loose.key}
    with pytest.raises(DataCheckError):
        validate(handle, chain.store, ChecksConfig())
    assert failed(chain.store, handle)
    assert passed(chain.store, handle, ChecksConfig(max_empty_share=0.1)) == loose
    assert not failed(chain.store, handle)  # the pass that is used again is the last word


def test_a_recorded_pass_is_used_again_while_all_it_depends_on_is_the_same(
    chain: "Chain", monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, checks = chain.dataset("rewards"), ChecksConfig()
    assert passed(chain.store, handle, checks) is None
    result = validate(handle, chain.store, checks)
    assert passed(chain.store, handle, checks) == result
    assert passed(chain.store, handle, ChecksConfig(max_tie_share=0.5)) is None
    monkeypatch.setattr(
        "data_checks.results.code_of", lambda *modules: dict.fromkeys(modules, "edited")
    )
    assert passed(chain.store, handle, checks) is None
    monkeypatch.undo()
    chain.store.storage.write(result.path, b"<html>")  # the page alone
    assert passed(chain.store, handle, checks) is None
    validate(handle, chain.store, checks)
    assert passed(chain.store, handle, checks) == result
    chain.store.storage.write(result_name(handle, result.key), b"{")
    assert passed(chain.store, handle, checks) is None


def test_a_pass_that_somebody_else_recorded_is_none(
    chain: "Chain", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor a forged one, sealed and with its page, under the very key of the check."""
    handle, checks = chain.dataset("rewards"), ChecksConfig()
    result = validate(handle, chain.store, checks)
    name = result_name(handle, result.key)
    fields = sealed_json.read(chain.store.storage.read(name))
    chain.store.storage.write(name, sealed_json.encode({**fields, "expectations": 1}))
    assert passed(chain.store, handle, checks) is None
    chain.store.storage.write(name, sealed_json.encode(fields))
    assert passed(chain.store, handle, checks) == result
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert passed(chain.store, handle, checks) is None
    assert recorded(chain.store, handle, result.key) == result  # as an audit shows it
    assert passed(chain.store, handle, checks) is None
    assert validate(handle, chain.store, checks) == passed(chain.store, handle, checks)


def test_a_recorded_failure_is_no_pass(chain: "Chain") -> None:
    handle = chain.dataset("rewards", seven_nans)
    with pytest.raises(DataCheckError):
        validate(handle, chain.store, ChecksConfig())
    assert passed(chain.store, handle, ChecksConfig()) is None


def test_the_same_check_writes_the_same_files(chain: "Chain") -> None:
    handle = chain.dataset("rewards")
    folder = chain.store.root / "checks" / "rewards" / handle.fingerprint
    validate(handle, chain.store, ChecksConfig())
    first = {path: path.read_bytes() for path in folder.iterdir()}
    validate(handle, chain.store, ChecksConfig())
    assert {path: path.read_bytes() for path in folder.iterdir()} == first
    assert sorted(path.suffix for path in first) == ["", ".html", ".json"]


def test_the_page_loads_nothing_from_elsewhere(chain: "Chain") -> None:
    with pytest.raises(DataCheckError):
        chain.check("rewards", seven_nans)
    (page,) = (chain.store.root / "checks" / "rewards").rglob("*.html")
    assert not re.findall(r"https?://|\bsrc=|@import|url\(|<script|<link", page.read_text())


def test_values_cannot_break_out_of_the_page(chain: "Chain") -> None:
    with pytest.raises(DataCheckError):
        chain.check(
            "generations", lambda rows: rows[0].update(finish_reason="<script>alert(1)</script>")
        )
    (page,) = (chain.store.root / "checks" / "generations").rglob("*.html")
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.read_text()


def test_threads_may_check_at_the_same_time(chain: "Chain") -> None:
    handles = [chain.dataset(name) for name in ("rewards", "win_rates", "training", "metrics")]
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda handle: validate(handle, chain.store, ChecksConfig()), handles)
        )
    assert [result.handle for result in results] == handles


def test_what_cannot_be_checked_is_said_in_one_line(chain: "Chain", store: Store) -> None:
    dropped = Dataset(name="prompts.dropped", fingerprint="0" * 64, rows=0)
    with pytest.raises(
        DatasetError,
        match=r"no data checks are known for prompts\.dropped/000000000000: the suites are "
        r"prompts, ",
    ):
        validate(dropped, store, ChecksConfig())
    orphan = chain.dataset("metrics")
    manifest = store.path(orphan) / "manifest.json"
    manifest.write_bytes(
        sealed_json.encode(json.loads(manifest.read_text().replace('"iteration":', '"round":')))
    )
    with pytest.raises(DatasetError, match="records no iteration: rerun the stage"):
        validate(orphan, store, ChecksConfig())
    lonely = chain.dataset("win_rates")
    manifest = store.path(lonely) / "manifest.json"
    manifest.write_bytes(
        sealed_json.encode(json.loads(manifest.read_text().replace('"rewards":', '"scores":')))
    )
    with pytest.raises(DatasetError, match="names no parent 'rewards': rerun the stage"):
        validate(lonely, store, ChecksConfig())


def test_an_unreadable_result_is_said_in_one_line(chain: "Chain") -> None:
    handle = chain.dataset("training")
    result = validate(handle, chain.store, ChecksConfig())
    chain.store.storage.write(result_name(handle, result.key), b"{")
    with pytest.raises(DatasetError, match="cannot be read: delete it and check again"):
        failed(chain.store, handle)


def test_the_mark_of_an_older_layout_is_still_read(chain: "Chain") -> None:
    """Until 0.1 a dataset had one result, without warnings."""
    handle = chain.dataset("rewards")
    result = validate(handle, chain.store, ChecksConfig()).model_dump(
        mode="json", exclude={"warnings", "failures", "previous"}
    )
    shutil.rmtree(chain.store.root / "checks" / "rewards" / handle.fingerprint)
    old = json.dumps(result | {"success": False, "great_expectations": "1", "frames": {}})
    chain.store.storage.write(f"checks/rewards/{handle.fingerprint}.json", old.encode())
    assert failed(chain.store, handle)


def test_marks_are_read_without_great_expectations() -> None:
    code = "import sys, data_checks.results; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
