"""The processes of a trial, from the nursery or started cold, and what they leave alive."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.ask import LARGEST, ask
from tests.chaos.shim import Shim
from wind.machine import processes

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_WARM = 180
SECONDS_TO_END = 240
SECONDS_TO_DIE = 15.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: negative for the number of the signal that killed it, as in subprocess."""

    code: int
    out: str
    error: str


class Running:
    """A command that was started."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self._connection = connection
        self._log = log
        self.pid = int(connection.recv(LARGEST))

    def wait(self, seconds: float = SECONDS_TO_END) -> Ended:
        """How it ended. After so many seconds it is killed, which the code tells."""
        self._connection.settimeout(seconds)
        try:
            answer = self._connection.recv(LARGEST)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._connection.settimeout(None)
            answer = self._connection.recv(LARGEST)
        self._connection.close()
        code = os.waitstatus_to_exitcode(int(answer))
        return Ended(
            code,
            self._log.with_suffix(".out").read_text(),
            self._log.with_suffix(".err").read_text(),
        )


class Nursery:
    """Forks commands of `wind`, and the workers of runs, from one process that has everything
    imported.
    """

    def __init__(self, folder: Path, shim: Shim, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._address = str(folder / "nursery")
        self._environment = {
            **os.environ,
            **environment,
            **shim.environment(),
            "PYTHONPATH": str(ROOT),
        }
        self._commands = 0
        ones = {
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        }
        with (folder / "nursery.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.chaos.nursery", self._address]
            self._process = processes.start(
                command, env=self._environment | ones, cwd=ROOT, stdout=log, stderr=log
            )
        self.python = folder / "python"  # to a run an interpreter like any other
        self.python.write_text(
            f"#!/bin/sh\nexec {sys.executable} -IS {Path(__file__).with_name('ask.py')} "
            f'{self._address} "$@"\n'
        )
        self.python.chmod(0o755)

    def wait(self) -> None:
        """Return when it is warm. Raises RuntimeError with its log if it does not get so."""
        deadline = time.monotonic() + SECONDS_TO_WARM
        while not Path(self._address).exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "nursery.log").read_text())
            time.sleep(0.05)

    def start(
        self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> Running:
        """`wind` with `arguments`, in `folder`."""
        self._commands += 1
        log = self._folder / f"command-{self._commands:04d}"
        with (
            log.with_suffix(".out").open("wb") as out,
            log.with_suffix(".err").open("wb") as error,
            open(os.devnull) as none,
        ):
            streams = {0: none.fileno(), 1: out.fileno(), 2: error.fileno()}
            variables = {**self._environment, **(environment or {})}
            connection = ask(
                self._address, "flows.cli", list(arguments), str(folder), variables, streams
            )
        return Running(connection, log)

    def run(
        self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> Ended:
        """How `wind` with `arguments` ended."""
        return self.start(*arguments, folder=folder, environment=environment).wait()

    def orphans(self) -> list[str]:
        """What still lives of all that was started, once it had time to die."""
        deadline = time.monotonic() + SECONDS_TO_DIE
        while (left := self._descendants()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def close(self) -> None:
        """End it, and whatever it left."""
        for number in [self._process.pid, *(int(line.split()[0]) for line in self._descendants())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait()

    def _descendants(self) -> list[str]:
        parents, commands = {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (
                    (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            if state not in "ZX":
                parents[int(path.name)], commands[int(path.name)] = int(parent), command
        found, before = {self._process.pid}, 0
        while len(found) > before:
            before = len(found)
            found |= {process for process, parent in parents.items() if parent in found}
        return [f"{process} {commands[process]}" for process in sorted(found - {self._process.pid})]
