"""What is kept of where and by what something was computed: environments, git state, origins."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wind.store import provenance as module
from wind.store.datasets import Store
from wind.store.provenance import environment, git_state, provenance

ENVIRONMENT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
USER = ("-c", "user.name=a", "-c", "user.email=a@b.c")


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """What a process found once it keeps: not from test to test."""
    yield
    module._git.cache_clear()
    module._environment.cache_clear()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, taken for the project's own."""
    tree = tmp_path / "tree"
    (tree / "wind").mkdir(parents=True)
    (tree / "wind" / "provenance.py").write_text("one\ntwo\n")
    (tree / ".gitignore").write_text("ignored.py\n")
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, *USER, "commit", "-q", "-m", "first")
    monkeypatch.setattr(module, "TREE", tree)
    monkeypatch.setattr(module, "__file__", str(tree / "wind" / "provenance.py"))
    module._git.cache_clear()
    return tree


def git(tree: Path, *arguments: str) -> str:
    ran = subprocess.run(
        ["git", *arguments],
        cwd=tree,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def test_variables_are_those_that_the_process_was_started_with(store: Store) -> None:
    """By name only, and without what a library sets while it computes."""
    program = f"""
import os
from wind.store.datasets import Store
from wind.store.provenance import environment
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
print(environment(Store({os.fspath(store.root)!r})))
"""
    started = {
        "HF_TOKEN": "a-value-that-is-nobodys",
        "PYTHONPATH": os.fspath(Path(__file__).parents[2]),
        "HOME": "/",
    }
    ran = subprocess.run(
        [sys.executable, "-c", program], env=started, capture_output=True, text=True, check=True
    )
    text = store.storage.read(f"environments/{ran.stdout.strip()}.json").decode()
    assert json.loads(text)["variables"] == ["HF_TOKEN", "PYTHONPATH"]
    assert "nobodys" not in text


def test_an_environment_is_stored_once_under_its_digest(store: Store) -> None:
    module._environment.cache_clear()
    name = environment(store)
    text = store.storage.read(f"environments/{name}.json").decode()
    found = json.loads(text)
    assert any(package.startswith("pyarrow==") for package in found["packages"])
    assert found["packages"] == sorted(found["packages"], key=str.lower)
    assert environment(store) == name
    assert store.storage.names("environments") == [f"{name}.json"]
    assert provenance(store, 0.0)["environments"] == [name]
    assert provenance(store, 0.0, environments=["b" * 64, "a" * 64, "b" * 64])["environments"] == [
        "a" * 64,
        "b" * 64,
    ]


def test_a_clean_checkout_is_its_revision(store: Store, checkout: Path) -> None:
    assert git_state(store) == {
        "git_revision": git(checkout, "rev-parse", "HEAD"),
        "git_dirty": False,
    }
    assert store.storage.names("patches") == []


def test_a_patch_gives_back_changed_and_new_files(
    store: Store, checkout: Path, tmp_path: Path
) -> None:
    (checkout / "wind" / "provenance.py").write_text("one\nthree\n")
    (checkout / "wind" / "new.py").write_text("four\n")
    (checkout / "ignored.py").write_text("five\n")
    (checkout / "rows.bin").write_bytes(b"\0")
    state = git_state(store)
    assert state["git_dirty"] is True
    # the user's index is as it was
    assert git(checkout, "status", "--porcelain").splitlines()[-1].startswith("?? ")
    patch = tmp_path / "it.patch"
    patch.write_bytes(store.storage.read(f"patches/{state['git_patch']}.patch"))
    git(tmp_path, "clone", "-q", str(checkout), "again")
    git(tmp_path / "again", "apply", str(patch))
    assert (tmp_path / "again" / "wind" / "provenance.py").read_text() == "one\nthree\n"
    assert (tmp_path / "again" / "wind" / "new.py").read_text() == "four\n"
    assert {path.name for path in (tmp_path / "again").iterdir()} == {".git", ".gitignore", "wind"}


def test_a_patch_holds_no_secret(store: Store, checkout: Path) -> None:
    (checkout / "wind" / "provenance.py").write_text('one\ntwo\npassword = "correct-horse"\n')
    state = git_state(store)
    assert state["git_patch_redacted"] is True
    assert b"correct-horse" not in store.storage.read(f"patches/{state['git_patch']}.patch")


def test_a_large_patch_is_only_measured(store: Store, checkout: Path) -> None:
    (checkout / "wind" / "provenance.py").write_text("x" * (2**20 + 1))
    state = git_state(store)
    assert state["git_patch_bytes"] > 2**20
    assert "git_patch" not in state
    assert store.storage.names("patches") == []


def test_a_copy_within_somebody_elses_checkout_has_no_revision(
    store: Store, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "ignored.py"
    installed.write_text("")
    monkeypatch.setattr(module, "__file__", str(installed))
    module._git.cache_clear()
    assert git_state(store) == {}
