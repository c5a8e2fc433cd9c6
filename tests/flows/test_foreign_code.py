"""Somebody else's code: a reward that does what Python programs do, among files named as modules of
ours and Python's are.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.conftest import Wind
from tests.wind.test_user_path import CONSOLE_SCRIPT, shadowed
from wind.config.recipe import DistillConfig

REWARD = """
import os, signal, subprocess, sys
from concurrent.futures import ProcessPoolExecutor


def late(*arguments):
    raise TimeoutError


def verified(text):
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        return float(len(text) % 5)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def busy(prompts, responses, answers):
    print('{"done": "not a word of the protocol"}', flush=True)
    os.write(1, b"nor this\\\\n")
    program = "import sys; print(len(sys.stdin.read()))"
    read = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert read.stdout == "0\\\\n", read
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(verified, responses))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "own_workers")
def test_a_reward_may_use_pools_programs_alarms_and_print(wind: Wind, tmp_path: Path) -> None:
    (tmp_path / "busy_reward.py").write_text(REWARD.replace("\\\\n", "\\n"))
    code, out, err = wind("run", "tiny.yaml", "--set", "reward.function=busy_reward:busy")
    assert (code, "tiny@1" in out) == (0, True), err
    assert "nor this" in next((tmp_path / "logs").glob("*.log")).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_no_process_of_a_run_takes_its_modules_from_the_users_folder(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    recipe()
    shadowed(tmp_path)
    environment = {**os.environ, "PYTHONPATH": "."}
    command = [CONSOLE_SCRIPT, "run", "tiny.yaml"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, "tiny@1" in ended.stdout) == (0, True), ended.stderr
