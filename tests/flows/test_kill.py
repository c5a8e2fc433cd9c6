"""A run that is killed or interrupted leaves no process behind; tests/chaos sees what it leaves in
the store.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.server import EmbeddedServer
from wind.config.recipe import DistillConfig

pytestmark = pytest.mark.slow

SECONDS = 600
SECONDS_TO_DIE = 15
EMBEDDED = {"PREFECT_API_URL": ""}  # a Prefect server of its own, which must die with the run


# at the beginning, between two stages, and as the run is about to end
MOMENTS = ("load_prompts", "score_rewards", "measure_metrics")
SECONDS_TO_END = 30  # ten on a machine that does nothing else


def start(mark: str, **environment: str) -> "subprocess.Popen[bytes]":
    """`wind run` in a session of its own; every process it starts inherits the mark."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "tiny.yaml"],
        env={
            **os.environ,
            "WIND_TEST_MARK": mark,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        },
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
        while (
            not any("wind.stages.worker" in command for command in marked(mark))
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        process.send_signal(how)
        said = process.communicate()[1]
        assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
        assert (how == signal.SIGINT) == (
            b"error: interrupted; rerun to resume from the finished shards\n" in said
        )
        assert_all_gone(mark)


def test_a_run_outlives_its_prefect_server(recipe: Callable[..., DistillConfig]) -> None:
    """Killed at several moments, and at last as often as it comes back: the run goes on, ends in
    order, and says little.
    """
    recipe()
    process = start(mark := uuid.uuid4().hex, **EMBEDDED)
    moments, said = list(MOMENTS), b""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if moments and moments[0].encode() in line:
            del moments[0]
            assert servers_killed(mark)
        if not moments and process.poll() is None:
            break
    ended = threading.Event()
    killer = threading.Thread(
        target=lambda: [servers_killed(mark) for _ in iter(lambda: ended.wait(0.1), True)]
    )
    killer.start()
    try:
        said += process.communicate(timeout=SECONDS)[1]
    finally:
        ended.set()
        killer.join()
    assert process.returncode == 0, said
    assert b"14 datasets computed, 0 from the cache\n" in said
    assert all(
        line.startswith((b"run ", b"iteration ", b"  ", b"14 ", b"the Prefect server at "))
        for line in said.splitlines()
    ), said
    assert_all_gone(mark)


def test_a_run_ends_in_order_when_a_prefect_server_of_somebody_goes_away(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    recipe()
    server = EmbeddedServer(tmp_path / "prefect")
    server.start()
    server.wait()
    process = start(uuid.uuid4().hex, **server.variables)
    said, measured = b"", 0.0
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            said += line
            if MOMENTS[0].encode() in line:
                server.stop()
            if b"  measure_metrics " in line:
                measured = time.monotonic()
    assert process.wait(SECONDS) == 0, said
    assert 0 < time.monotonic() - measured < SECONDS_TO_END
    assert b"is gone and does not know how this run ended\n14 datasets computed" in said
    assert b"Traceback" not in said
    rerun = start(uuid.uuid4().hex, **EMBEDDED)
    assert b"0 datasets computed, 14 from the cache\n" in rerun.communicate(timeout=SECONDS)[1]
    assert rerun.returncode == 0


def servers_killed(mark: str) -> int:
    """How many of a run's Prefect servers were there, and are killed."""
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                "flows.server" in process.cmdline()
                and process.environ().get("WIND_TEST_MARK") == mark
            ):
                process.kill()
                killed += 1
    return killed
