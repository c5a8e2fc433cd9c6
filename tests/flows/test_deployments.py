"""A served schedule against a real Prefect server, through deaths of the server, of the command and of the serving process."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from flows.server import QUIET, EmbeddedServer
from wind import processes
from wind.config import DistillConfig
from wind.datasets import Store
from wind.versions import Versions

pytestmark = pytest.mark.slow

SECONDS = 600
SECONDS_TO_DIE = 10.0
MARK = "SERVED_BY_TEST"


def wait_for(iterations: int, serving: processes.Process) -> list[int]:
    """The iterations published once there are that many, in order of publishing."""
    deadline = time.monotonic() + SECONDS
    published: list[int] = []
    while len(published) < iterations and time.monotonic() < deadline:
        assert serving.poll() is None
        published = [version.content.iteration for version in Versions(Store("store"), "tiny")]
        time.sleep(0.5)
    return published


@contextmanager
def served(tmp_path: Path, *, server: Mapping[str, str], interval: float) -> Iterator[processes.Process]:
    """`wind serve` for the block; Prefect's runner has a temporary folder of its own, which a killed one leaves."""
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, **QUIET, **server, MARK: str(tmp_path), "TMPDIR": str(temporary)}
    environment["PYTHONPATH"] = str(processes.SOURCE)
    command = processes.python("-m", "flows.cli", "serve", "tiny.yaml", "--interval", str(interval), "--port", "0")
    log = tmp_path / "serve.log"
    with log.open("ab") as file:
        serving = processes.start(command, env=environment, stdout=file, stderr=file)
    try:
        yield serving
    finally:
        serving.end()


def started(mark: str) -> dict[int, str]:
    """The commands of all processes that the served schedules of this test have started, by process id."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


def engine_of(mark: str) -> int:
    """The process id of a flow run that has just begun to start."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for number, command in started(mark).items():
            if "multiprocessing.spawn" in command:
                return number
        time.sleep(0.01)
    raise AssertionError("no flow run was started")


def assert_ended(mark: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (left := started(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == {}


def test_each_due_run_is_one_more_iteration(recipe: Callable[..., DistillConfig], tmp_path: Path) -> None:
    recipe()
    server = EmbeddedServer(tmp_path / "prefect", services=True)
    server.start()
    server.wait()
    try:
        with served(tmp_path, server=server.variables, interval=30) as serving:
            assert wait_for(1, serving) == [1]
            server.stop()
            time.sleep(5)
            server.start()
            server.wait()
            assert wait_for(2, serving)[:2] == [1, 2]
    finally:
        server.stop()
    assert_ended(str(tmp_path))


def test_nothing_outlives_a_command_killed_while_a_flow_run_starts(recipe: Callable[..., DistillConfig], tmp_path: Path) -> None:
    """At any moment of its start, with the server dying before, after or not at all."""
    recipe()
    moments = random.Random(0)
    for server_dies in ("before", "after", "never"):
        server = EmbeddedServer(tmp_path / "prefect", services=True)
        server.start()
        server.wait()
        try:
            with served(tmp_path, server=server.variables, interval=1) as serving:
                engine_of(str(tmp_path))
                if server_dies == "before":
                    time.sleep(moments.uniform(0, 3))
                    server.stop()
                time.sleep(moments.uniform(0, 3))
                serving.send_signal(signal.SIGKILL)
            if server_dies == "after":
                server.stop()
            assert_ended(str(tmp_path))
        finally:
            server.stop()


def test_a_serving_process_that_dies_ends_its_flow_runs_and_the_command(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    recipe()
    with served(tmp_path, server={}, interval=1) as serving:
        engine_of(str(tmp_path))
        commands = {number: command for number, command in started(str(tmp_path)).items() if "lifeline" not in command}
        [runner] = [number for number, command in commands.items() if command.endswith("flows.cli serve-forever")]
        os.kill(runner, signal.SIGKILL)
        assert serving.wait(SECONDS_TO_DIE) == 1
    assert "the process that served tiny was killed by SIGKILL" in (tmp_path / "serve.log").read_text()
    assert_ended(str(tmp_path))
