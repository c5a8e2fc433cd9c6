"""A served schedule against a real Prefect server, through the server's death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.server import QUIET, EmbeddedServer
from wind.config import DistillConfig
from wind.datasets import Store
from wind.versions import Versions

pytestmark = pytest.mark.slow

SECONDS = 600


def wait_for(iterations: int, process: "subprocess.Popen[bytes]") -> list[int]:
    """The iterations published once there are that many, in order of publishing."""
    deadline = time.monotonic() + SECONDS
    published: list[int] = []
    while len(published) < iterations and time.monotonic() < deadline:
        assert process.poll() is None
        published = [version.content.iteration for version in Versions(Store("store"), "tiny")]
        time.sleep(0.5)
    return published


def test_each_due_run_is_one_more_iteration(
    recipe: Callable[..., DistillConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe()
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    server = EmbeddedServer(tmp_path / "prefect", services=True)
    server.start()
    server.wait()
    environment = {**os.environ, "PREFECT_API_URL": server.url, "PYTHONPATH": str(Path(__file__).parents[2])}
    serving = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", "tiny.yaml", "--interval", "30"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_for(1, serving) == [1]
        server.stop()
        time.sleep(5)
        server.start()
        server.wait()
        assert wait_for(2, serving)[:2] == [1, 2]
    finally:
        serving.send_signal(signal.SIGKILL)
        serving.wait()
        server.stop()
