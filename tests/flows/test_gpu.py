"""The whole loop on a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.distill import distill
from tasks.run import open_run
from tests.wind.versions_case import verify
from wind.config.recipe import DistillConfig
from wind.machine import devices
from wind.store.datasets import Store
from wind.store.references import find_version

IN_BFLOAT16 = ("training.zero_stage=2", "training.precision=bfloat16", "inference.dtype=bfloat16")


@pytest.mark.gpu
@pytest.mark.usefixtures("prefect_server")
def test_a_run_names_its_gpus_and_publishes_a_version(
    recipe: Callable[..., DistillConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(recipe("workers.device=cuda", *IN_BFLOAT16)) as here:
        distill(here.config)
    assert (
        capsys.readouterr().err.splitlines()[0] == f"run tiny on {devices.listed(devices.gpus())}"
    )
    store = Store(tmp_path / "store")
    assert verify(store, find_version(store, "tiny")) > 0
