"""A run that is killed or interrupted leaves no process behind; tests/chaos sees what it leaves in the store."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from wind.config import DistillConfig

pytestmark = pytest.mark.slow

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


def assert_all_gone(mark: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.mark.usefixtures("prefect_server")
def test_an_interrupted_run_leaves_no_process(recipe: Callable[..., DistillConfig]) -> None:
    recipe()
    for how, environment in ((signal.SIGKILL, EMBEDDED), (signal.SIGINT, {})):
        mark = uuid.uuid4().hex
        process = start(mark, **environment)
        deadline = time.monotonic() + 90
        while not any("wind.worker" in command for command in marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(how)
        said = process.communicate()[1]
        assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
        assert (how == signal.SIGINT) == (b"error: interrupted; rerun to go on from the finished shards\n" in said)
        assert_all_gone(mark)
