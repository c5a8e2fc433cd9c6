"""A whole run with its root on an object store."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flows.distill import distill
from tasks.run import open_run
from tests.wind.versions_case import verify
from wind.config.recipe import DistillConfig
from wind.store.datasets import Store
from wind.store.references import find_version

pytestmark = pytest.mark.slow


def run(config: DistillConfig) -> list[str]:
    """The tasks that computed something, in order."""
    with open_run(config, quiet=True) as here:
        distill(here.config)
        return [event.task for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_a_run_in_a_bucket_makes_the_same_version(
    recipe: Callable[..., DistillConfig],
    finished: Path,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wind: Callable[..., tuple[int, str, str]],
) -> None:
    config = recipe(f"root={s3}")
    assert len(run(config)) == 14
    store = Store(s3)
    version = find_version(store, "tiny")
    assert version.id == find_version(Store(finished), "tiny").id
    assert verify(store, version) == verify(Store(finished), find_version(Store(finished), "tiny"))
    assert not (tmp_path / "store").exists()
    monkeypatch.setenv("WIND_CACHE", str(tmp_path / "another machine"))
    assert run(config) == []
    assert json.loads(wind("versions", "--root", s3, "--json")[1])[0]["id"] == version.id
    assert (
        f"{s3}/models/{version.content.model_out.fingerprint}"
        in wind("show", "tiny", "--root", s3)[1]
    )
    assert (
        len(
            json.loads(
                wind("rows", "tiny:rewards", "--where", "reward >= 0", "--root", s3, "--json")[1]
            )
        )
        == 10
    )
    assert json.loads(wind("verify", "tiny", "--root", s3, "--json")[1])["findings"] == []
    kept = {entry.name.split("/")[0] for entry in store.storage.files("")}
    records = {"checks", "computations", "environments", "results", "runs"}
    # a patch where this checkout has changes
    assert kept - {"patches"} == {*records, "datasets", "models", "sources"}
    assert not any(
        b"the-secret" in store.storage.read(entry.name) for entry in store.storage.files("")
    )


def test_a_bucket_that_cannot_be_reached_is_one_line(
    s3: str, wind: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = {
        "max_retries": 1,
        "backoff": {
            "init_backoff": timedelta(milliseconds=1),
            "max_backoff": timedelta(milliseconds=1),
        },
    }
    monkeypatch.setattr("wind.store.object_storage.RETRY", retry)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for command in (
        ("versions", "--root", s3),
        ("verify", "--root", s3),
        ("rerun", "tiny", "--from", "logps", "--root", s3),
    ):
        code, _, said = wind(*command)
        assert code == 1
        assert said.startswith(f"error: {s3} does not answer as it should")
    code, _, said = wind("versions", "--root", "s3://key:hunter2@bucket/x")
    assert code == 2
    assert "hunter2" not in said
