"""Faults of a few kinds at fixed places; `python -m tests.chaos` injects a hundred, of all kinds."""

import random
from pathlib import Path

import pytest

from tests.chaos.site import site
from tests.chaos.trials import Trial

pytestmark = pytest.mark.slow

SEED = 0
KINDS = (
    "SIGKILL of a worker",
    "torn write, then SIGKILL",  # of the parent
    "flipped bit in a result",
)


def test_faults_are_survived(
    prefect_server: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    with site(
        tmp_path, iterations=1, with_s3=False, server=prefect_server, model=tiny_model
    ) as here:
        for kind in KINDS:
            trial = Trial(here, kind, random.Random(f"{SEED} {kind}"))
            trial.run()
            assert trial.what, f"nothing happened: {kind}"
