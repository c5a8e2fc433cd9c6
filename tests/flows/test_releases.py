"""What an earlier release left: its store is whole and can be read, and its recipe gives the
version that it gave then.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.run import KeptConfig
from wind.audit.changes import setting_changes
from wind.config.base import without
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Version

Wind = Callable[..., tuple[int, str, str]]
RELEASES = sorted((Path(__file__).parents[1] / "releases").glob("*.tar.xz"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def release(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Version:
    """The version that an earlier release published; its store, its recipe and what that names lie
    in the current folder.
    """
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(next(tmp_path.iterdir()))
    return find_version(Store("store"), "tiny")


def test_there_is_a_release() -> None:
    assert RELEASES


def test_its_store_is_whole(release: Version, command: Wind) -> None:
    code, out, err = command("verify", "--json")
    assert (code, json.loads(out)["findings"]) == (0, []), err


def test_its_store_is_read(release: Version, command: Wind) -> None:
    code, out, _ = command("versions", "--json")
    assert (code, [version["id"] for version in json.loads(out)]) == (0, [release.id])
    for name, dataset in release.content.datasets.items():
        code, out, _ = command("rows", f"tiny:{name}", "--limit", "1000", "--json")
        assert (code, len(json.loads(out))) == (0, dataset.rows), name
    code, out, _ = command("sql", "SELECT count(*) AS n FROM rewards", "--json")
    assert (code, json.loads(out)) == (0, [{"n": release.content.datasets["rewards"].rows}])


def test_the_config_of_its_run_is_read(release: Version) -> None:
    kept = KeptConfig.of(Store("store"), release.run)
    assert kept is not None
    auto = ["selection"]  # a run decides it when it starts
    ours = without(kept.config.recipe(), kept.config.defaults())
    assert without(ours, auto) == without(release.content.chosen(), auto)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_its_recipe_gives_its_version(release: Version, command: Wind) -> None:
    """The same id where the floats are the same; on a machine where they are not, the same but for
    what was computed.
    """
    assert command("run", "tiny.yaml", "--set", "root=again")[0] == 0
    again = find_version(Store("again"), "tiny")
    then, now = release.content, again.content
    # no default has changed
    assert list(setting_changes((then.recipe, then.defaults), (now.recipe, now.defaults))) == []
    assert now.datasets["prompts"] == then.datasets["prompts"]
    computed = {name: getattr(then, name) for name in ("datasets", "model_out")}
    assert now.model_copy(update=computed).id() == release.id
    is_the_same = all(getattr(now, name) == handles for name, handles in computed.items())
    assert (again.id == release.id) == is_the_same
