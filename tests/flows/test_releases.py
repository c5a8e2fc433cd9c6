"""What an earlier release left: its store is whole and can be read, and its recipe gives the version that it gave then."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wind.datasets import Store
from wind.names import find
from wind.recipes import load_config
from wind.versions import Version

Wind = Callable[..., tuple[int, str, str]]
RELEASES = sorted((Path(__file__).parents[1] / "releases").glob("*.tar.xz"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def release(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """The version that an earlier release published; its store, its recipe and what that names lie in the current folder."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(next(tmp_path.iterdir()))
    return find(Store("store"), "tiny")


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


def test_no_default_was_changed(release: Version) -> None:
    config = load_config("tiny.yaml")
    assert release.content.recipe.items() <= config.recipe().items()
    assert set(release.content.defaults) <= set(config.defaults())


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_its_recipe_gives_its_version(release: Version, command: Wind) -> None:
    """The same id where the floats are the same; on a machine where they are not, the same but for what was computed."""
    assert command("run", "tiny.yaml", "--set", "root=again")[0] == 0
    again = find(Store("again"), "tiny")
    for name in ("prompts", "generations"):
        assert again.content.datasets[name] == release.content.datasets[name]
    computed = ("datasets", "model_out")
    then = {name: getattr(release.content, name) for name in computed}
    assert again.content.model_copy(update=then).id() == release.id
    is_the_same = all(getattr(again.content, name) == then[name] for name in computed)
    assert (again.id == release.id) == is_the_same
