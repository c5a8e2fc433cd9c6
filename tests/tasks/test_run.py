"""A run is alone on its name."""

import os
from pathlib import Path

import pytest

from tasks.run import Run, open_run
from wind.config.loading import bandit_config
from wind.errors import StageError
from wind.store.datasets import Store


@pytest.mark.parametrize("kind", ["folder", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_run_that_is_going_on_is_refused(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "store") if kind == "folder" else request.getfixturevalue("s3")
    config = bandit_config((), root=root, seed=0)
    with open_run(config, quiet=True) as here:
        message = (
            rf"run {config.run} is going on in process {os.getpid()}( on \S+)?: wait for "
            r"it, or give this run another name"
        )
        with pytest.raises(StageError, match=message), open_run(config, quiet=True):
            pass
        with open_run(config.model_copy(update={"run": "other"}), quiet=True) as other:
            assert other.store.address == here.store.address == Store(root).address
    with open_run(config, quiet=True) as again:
        assert isinstance(again, Run)


def test_a_root_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    config = bandit_config((), root=str(tmp_path / "store"), seed=0)
    with pytest.raises(
        StageError, match=r"the store cannot be written: .*; set `root` to a writable folder"
    ):
        open_run(config, quiet=True).__enter__()
