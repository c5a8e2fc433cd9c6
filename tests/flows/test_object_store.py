"""A whole run with its root on an object store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.distill import distill
from tasks.running import start
from wind.config import DistillConfig
from wind.datasets import Store
from wind.versions import find, verify

pytestmark = pytest.mark.slow


def run(config: DistillConfig) -> list[str]:
    """The tasks that computed something, in order."""
    with start(config, quiet=True) as here:
        distill(here.config)
        return [event.task for event in here.events if event.outcome == "computed"]


@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_a_run_in_a_bucket_makes_the_same_version(
    recipe: Callable[..., DistillConfig], finished: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(f"root={s3}")
    assert len(run(config)) == 14
    store = Store(s3)
    version = find(store, "tiny")
    assert version.id == find(Store(finished), "tiny").id
    assert verify(store, version) == verify(Store(finished), find(Store(finished), "tiny"))
    assert not (tmp_path / "store").exists()
    monkeypatch.setenv("WIND_CACHE", str(tmp_path / "another machine"))
    assert run(config) == []
    kept = {entry.name.split("/")[0] for entry in store.storage.files("")}
    assert kept == {"checks", "datasets", "models", "published", "results", "runs", "sources"}
    assert not any(b"the-secret" in store.storage.read(entry.name) for entry in store.storage.files(""))
