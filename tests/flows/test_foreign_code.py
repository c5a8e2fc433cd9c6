"""A reward that does what Python programs do: pools, programs that read their input, alarms, prints."""

from pathlib import Path

import pytest

from tests.flows.conftest import Wind

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
@pytest.mark.usefixtures("own_workers")
def test_a_reward_may_use_pools_programs_alarms_and_print(wind: Wind, tmp_path: Path, prefect_server: str) -> None:
    (tmp_path / "busy_reward.py").write_text(REWARD.replace("\\\\n", "\\n"))
    code, out, err = wind("run", "tiny.yaml", "--set", "reward.function=busy_reward:busy")
    assert (code, "tiny@1" in out) == (0, True), err
    assert "nor this" in next((tmp_path / "logs").glob("*.log")).read_text()
