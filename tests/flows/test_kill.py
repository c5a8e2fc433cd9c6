"""kill -9 at random times: a rerun ends with the version of an uninterrupted run, and no process is left behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.distill import distill
from tasks.running import start as running
from tests.wind.versions_case import verify
from wind.config import DistillConfig
from wind.datasets import Store
from wind.names import find

pytestmark = pytest.mark.slow

KILLS = 4
SEED = 0
SECONDS_TO_DIE = 15
EMBEDDED = {"PREFECT_API_URL": ""}  # a Prefect server of its own, which must die with the run


def start(mark: str, **environment: str) -> "subprocess.Popen[bytes]":
    """`wind run` in a session of its own; every process it starts inherits the mark."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "tiny.yaml"],
        env={**os.environ, "WIND_TEST_MARK": mark, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def marked(mark: str) -> list[str]:
    """The command lines of all living processes with the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"WIND_TEST_MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def finish(process: "subprocess.Popen[bytes]") -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def assert_all_gone(mark: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def assert_ended(wanted: str) -> None:
    version = find(Store("store"), "tiny")
    assert version.id == wanted
    assert verify(Store("store"), version) > 0


@pytest.mark.usefixtures("warm_workers")
def test_killed_runs_end_with_the_same_version(recipe: Callable[..., DistillConfig], finished: Path) -> None:
    config = recipe()
    wanted = find(Store(finished), "tiny").id
    mark = uuid.uuid4().hex
    begun = time.monotonic()
    finish(start(mark))
    seconds = time.monotonic() - begun
    assert_all_gone(mark)
    assert_ended(wanted)
    draw = random.Random(SEED)
    kills = 0
    shutil.rmtree("store")
    while kills < KILLS:  # reruns are killed too, until one is quick enough to end
        mark = uuid.uuid4().hex
        run = start(mark, **(EMBEDDED if kills % 3 == 0 else {}))
        try:
            run.communicate(timeout=draw.uniform(0.1, seconds))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            kills += 1
        else:
            assert run.returncode == 0
            assert_ended(wanted)
            shutil.rmtree("store")
        assert_all_gone(mark)
    with running(config, quiet=True) as here:
        distill(here.config)
    assert_ended(wanted)


@pytest.mark.usefixtures("prefect_server")
def test_an_interrupted_run_leaves_no_process(recipe: Callable[..., DistillConfig]) -> None:
    recipe()
    for how, environment in ((signal.SIGINT, EMBEDDED), (signal.SIGTERM, {})):
        mark = uuid.uuid4().hex
        process = start(mark, **environment)
        deadline = time.monotonic() + 90
        while not any("wind.worker" in command for command in marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(how)
        process.communicate()
        assert process.returncode != 0
        assert_all_gone(mark)
