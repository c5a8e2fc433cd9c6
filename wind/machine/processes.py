"""Start processes that end with the one that started them.

Each is bound before it runs anything else, so that nothing of ours outlives us, however we end.
What a command starts in turn is not ours to bind: `descendants=True` puts it under a keeper
(`wind.machine.lifeline`) that ends everything with the command or with us.
"""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from wind.machine.environment import built
from wind.machine.user_path import VARIABLE as USER_PYTHONPATH
from wind.machine.user_path import user_pythonpath

# folder that contains this project's packages
SOURCE: Final = Path(__file__).resolve().parents[2]
LIFELINE: Final = Path(__file__).with_name("lifeline.py")
Stream = int | IO[bytes] | None


class Process(subprocess.Popen[bytes]):
    """A command that ends when this process does."""

    is_kept: bool

    def end(self) -> None:
        """Kill it and its process group, and return once it is reaped.

        If it was started with `descendants`, kills all of them.
        """
        with suppress(ProcessLookupError):
            if self.is_kept:
                # tells the keeper to kill everything, which it then reports as its own end
                self.terminate()
            elif self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def python(*arguments: str, interpreter: str = sys.executable) -> list[str]:
    """Return a Python command line that ignores the current folder.

    No file there can then pass for a module.
    """
    return [interpreter, "-P", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment for a Python process that runs this project's code."""
    return {
        **built(os.environ),
        "PYTHONPATH": str(SOURCE),
        USER_PYTHONPATH: user_pythonpath(),
        **changes,
    }


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    pass_fds: Sequence[int] = (),
    cwd: str | Path | None = None,
    descendants: bool = False,
) -> Process:
    """Start `command` in a session of its own.

    Its standard input is empty unless `stdin` is given. With `descendants`, everything it starts
    ends with it, detached or not, and the returned process is its keeper, which ends as the command
    does, after everything else. Raises FileNotFoundError if there is no such program.
    """
    if shutil.which(command[0], path=env.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(2, "No such program", command[0])
    is_kept = descendants or not sys.platform.startswith("linux")
    mode = "kept" if descendants else "bound"

    def begin() -> Process:
        process = Process(
            [sys.executable, "-I", "-S", str(LIFELINE), mode, str(os.getpid()), *command],
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            cwd=cwd,
            start_new_session=True,
        )
        process.is_kept = is_kept
        return process

    return _in_starter(begin)


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: str | Path | None = None, timeout: float
) -> "subprocess.CompletedProcess[bytes]":
    """Run a short command to its end and return its output.

    Raises subprocess.SubprocessError if it fails or takes more than `timeout` seconds, and
    FileNotFoundError if there is no such program.
    """
    pipe = subprocess.PIPE
    with start(command, env=env, cwd=cwd, stdout=pipe, stderr=pipe, descendants=True) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            process.end()
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    done.check_returncode()
    return done


class _Starter:
    """The single thread that starts processes.

    The kernel ends a bound process with the thread that started it, not with the process.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Process], Callable[[], Process]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._serve, name="starter of processes", daemon=True).start()

    def start(self, begin: Callable[[], Process]) -> Process:
        """Return what `begin` returns, or raise what it raises."""
        future: Future[Process] = Future()
        self._waiting.put((future, begin))
        try:
            return future.result()
        # interrupted in the meantime: nobody will know about the process
        except BaseException:
            future.add_done_callback(_end_unknown)
            raise

    def _serve(self) -> None:
        while True:
            future, begin = self._waiting.get()
            try:
                future.set_result(begin())
            except BaseException as error:
                future.set_exception(error)
            # otherwise they would be kept alive until the next start
            del future, begin


def _end_unknown(future: "Future[Process]") -> None:
    if future.exception() is None:
        future.result().end()


_starter: _Starter | None = None
_turn = threading.Lock()


def _in_starter(begin: Callable[[], Process]) -> Process:
    global _starter
    with _turn:
        if _starter is None:
            _starter = _Starter()
    return _starter.start(begin)


def _forget_starter() -> None:
    """Reset the state after a fork.

    A forked process has no thread but the one that forked, and another may have held the lock.
    """
    global _starter, _turn
    _starter, _turn = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_starter)
