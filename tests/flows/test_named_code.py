"""Code that a store names, whoever made it: shown with its file and digest, and run only if the
user's own recipe names it.
"""

import hashlib
import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Wind
from wind.code.functions import source_digest
from wind.stages.__main__ import main
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.references import find_version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_server", "finished_recipe", "warm_workers"),
]

RAN = Path("ran")
PLANTED = """from pathlib import Path

def planted(prompts, responses, answers):
    Path("ran").touch()
    return [1.0 for _ in responses]
"""


@pytest.fixture
def planted(wind: Wind) -> Path:
    """A module that the recipe does not name, in the folder that commands run in."""
    path = Path("planted.py").absolute()
    path.write_text(PLANTED)
    return path


@pytest.fixture
def somebody_else(
    warm_workers: None, own_workers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The store was made by another user: a copy of it is here. Workers that start meanwhile are of
    this user, too.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def forged(name: str, **changes: Any) -> Path:
    """The manifest of the version's dataset `name`, the spec in it changed at dotted places."""
    store = Store("store")
    path = store.path(find_version(store, "tiny").content.datasets[name]) / "manifest.json"
    fields: dict[str, Any] = json.loads(path.read_bytes())
    for place, value in changes.items():
        *above, last = place.split("__")
        part = fields["computed_by"]["spec"]
        for each in above:
            part = part[each]
        part[last] = value
    path.write_bytes(sealed_json.encode(fields))
    return path


def shown(name: str, path: Path) -> str:
    return (
        f"reward.function {name} ({path}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()})"
    )


def test_a_function_that_a_spec_names_is_shown_and_not_run(wind: Wind, planted: Path) -> None:
    digest = source_digest("reward.function", "planted:planted")
    forged("rewards", reward__function="planted:planted", reward__source_digest=digest)
    code, out, line = wind("verify", "tiny", "--reproduce", "rewards")
    assert (code, out) == (2, "")
    assert (
        f"names code, and no recipe that you ran does: {shown('planted:planted', planted)}; give "
        "--run-code to run it" in line
    )
    assert not RAN.exists()
    code, out, line = wind("verify", "tiny", "--reproduce", "rewards", "--run-code", "--json")
    assert RAN.exists()
    assert json.loads(out)["differences"]  # it is another reward


def test_nor_is_one_of_pythons_own_or_a_match(wind: Wind, planted: Path) -> None:
    for name in ("pty:spawn", "os:system", "subprocess:run", "builtins:eval", "no_such_module:f"):
        forged("rewards", reward__function=name)
        code, _, line = wind("verify", "tiny@1", "--reproduce", "rewards")
        assert (code, f"reward.function {name}" in line) == (2, True)
        if name == "pty:spawn":
            assert shown(name, Path(pty.__file__)) in line
    forged(
        "evaluation",
        evaluation__match="planted:planted",
        match_digest=source_digest("evaluation.match", "planted:planted"),
    )
    code, _, line = wind("verify", "tiny", "--reproduce", "evaluation")
    assert (code, "evaluation.match planted:planted (" in line) == (2, True)
    assert not RAN.exists()


@pytest.mark.usefixtures("somebody_else")
def test_the_recipe_of_a_store_that_somebody_else_made_is_no_leave(wind: Wind) -> None:
    code, _, line = wind("verify", "tiny", "--reproduce", "rewards")
    assert (code, "reward.function tiny_reward:digits (" in line) == (2, True)
    assert wind("verify", "tiny", "--reproduce", "win_rates")[0] == 0
    assert wind("verify", "tiny", "--reproduce", "rewards", "--run-code")[0] == 0
    code, _, line = wind("rerun", "tiny", "--from", "metrics")
    assert (
        code,
        "the config of tiny in store names code" in line,
        "tiny_reward:digits" in line,
    ) == (2, True, True)
    assert wind("rerun", "tiny", "--from", "metrics", "--run-code")[0] == 0
    assert wind("rerun", "tiny", "--from", "metrics")[0] == 0  # it is this user's run now


def test_a_config_that_was_changed_is_nobodys(wind: Wind, planted: Path, tmp_path: Path) -> None:
    path = Path("store/runs/tiny/config.json")
    config = json.loads(path.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        (
            {"reward": {**config["reward"], "function": "planted:planted"}},
            "reward.function planted:planted (",
        ),
        (
            {"workers": {**config["workers"], "python": {"transformers": str(planted)}}},
            f"workers.python.transformers {planted} (",
        ),
        (
            {"checks": {**config["checks"], "files": ["planted.py"]}},
            f"checks.files planted.py ({planted}, sha256",
        ),
    ]
    for change, said in changes:
        path.write_text(json.dumps(config | change))
        code, _, line = wind("rerun", "tiny", "--from", "metrics")
        assert (code, said in line) == (2, True), line
    assert not RAN.exists()
    for broken in ("{", "[]", "[" * 100_000, '{"run": 7}'):
        path.write_text(broken)
        code, _, line = wind("rerun", "tiny", "--from", "metrics")
        assert (code, "runs/tiny/config.json is no config" in line) == (2, True), line


@pytest.mark.filterwarnings("ignore:.* deprecated as of GX Core 1.9.0:DeprecationWarning")
def test_a_condition_is_code_too(wind: Wind) -> None:
    """pandas evaluates it, attributes of modules included."""
    path = Path("store/runs/tiny/config.json")
    config = json.loads(path.read_text())
    condition = f"@pd.io.common.os.mkdir({str(RAN.absolute())!r}) is None"
    extra = {
        "expectation": "ExpectColumnValuesToNotBeNull",
        "column": "reward",
        "row_condition": condition,
        "condition_parser": "pandas",
    }
    config["checks"]["extra"] = {"rewards": [extra]}
    path.write_text(json.dumps(config))
    for command in (("check", "tiny"), ("rerun", "tiny", "--from", "metrics")):
        code, _, line = wind(*command)
        assert (code, f"checks.extra.rewards[0].row_condition {condition}" in line) == (2, True), (
            line
        )
    assert not RAN.exists()
    assert wind("check", "tiny", "--set", "checks.extra={}")[0] == 0
    wind("check", "tiny", "--run-code")
    assert RAN.exists()


def test_a_stage_by_hand_runs_no_function_unasked(
    planted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = source_digest("reward.function", "planted:planted")
    manifest = forged("rewards", reward__function="planted:planted", reward__source_digest=digest)
    monkeypatch.setattr(sys, "argv", ["wind.stages", str(manifest), "--root", "store"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(
        f"error: {manifest} names code, and no recipe that you ran does: "
        f"{shown('planted:planted', planted)}"
    )
    assert said.count("\n") == 1
    assert not RAN.exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--run-code"])
    main()
    assert shown("planted:planted", planted) in capfd.readouterr().err
    assert RAN.exists()


def test_a_job_that_is_no_file_is_one_line(
    wind: Wind, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("job.json")
    monkeypatch.setattr(sys, "argv", ["wind.stages", "job.json"])
    with pytest.raises(SystemExit):
        main()
    assert "job.json is a FIFO, not a plain file" in capfd.readouterr().err
