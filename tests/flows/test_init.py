"""`wind init`: what it writes, and that it runs as written."""

from pathlib import Path

import pytest
import yaml

from flows.commands import init
from flows.commands.init import FILES, STARTER
from tests.flows.conftest import Wind
from wind.store.datasets import Store
from wind.store.references import find_version


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_what_it_writes_runs(
    command: Wind, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("init", "mine", "--policy", str(tiny_model)) == (
        0,
        "mine/mine.yaml\nmine/prompts.jsonl\nmine/my_rewards.py\n"
        "next: run\n  cd mine\n  wind plan mine.yaml\n  wind run mine.yaml\n",
        "",
    )
    monkeypatch.chdir(tmp_path / "mine")
    code, out, _ = command("plan", "mine.yaml")
    assert code == 0
    assert "14 datasets to compute, 0 in the cache" in out
    code, _, complaints = command("run", "mine.yaml")
    assert code == 0, complaints
    rewards = find_version(Store("store"), "mine@1").content.datasets["rewards"]
    assert rewards.rows == 8  # one prompt to train on, the other is held out


def test_a_folder_that_has_such_files_is_left_alone(
    command: Wind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/my_rewards.py").write_text("precious")
    assert command("init", "mine") == (
        2,
        "",
        "error: mine already has my_rewards.py: name another folder\n",
    )
    assert [path.name for path in Path("mine").iterdir()] == ["my_rewards.py"]
    assert Path("mine/my_rewards.py").read_text() == "precious"
    assert command("init", "mine/my_rewards.py")[2] == (
        "error: mine/my_rewards.py is a file: name a folder\n"
    )


def test_the_policy_is_the_demo_s_where_it_is(
    command: Wind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # as installed: no models beside the packages
    monkeypatch.setattr(init, "STARTER", tmp_path / "flows/starter")
    (tmp_path / "flows/starter").mkdir(parents=True)
    for name in FILES:
        (tmp_path / "flows/starter" / name).write_bytes((STARTER / name).read_bytes())
    assert policy_of(command, "without") == "/path/to/model"
    Path("models/base").mkdir(parents=True)
    Path("models/base/config.json").touch()
    assert policy_of(command, "with") == str(tmp_path / "models/base")
    assert policy_of(command, "hub", "--policy", "ORG/NAME") == "ORG/NAME"


def policy_of(command: Wind, folder: str, *options: str) -> str:
    code, out, _ = command("init", folder, *options)
    assert code == 0
    path = str(yaml.safe_load(Path(folder, "mine.yaml").read_text())["policy"]["path"])
    assert (f"next: set policy.path in {folder}/mine.yaml, then run\n" in out) == (
        path == "/path/to/model"
    )
    return path
