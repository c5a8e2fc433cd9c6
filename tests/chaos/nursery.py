"""Warm processes: `python -m tests.chaos.nursery SOCKET` imports all that a run and its workers
need, and forks on demand.

Starting them is most of what a tiny run costs. A forked process is what a started one would be:
leader of its own session, with the environment, folder, arguments and open descriptors that were
asked for. Whatever its descendants leave behind falls to the nursery, which reaps them: a living
descendant of the nursery after a run is an orphan of that run.
"""

import contextlib
import ctypes
import fcntl
import functools
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tests.chaos.ask import LARGEST

PR_SET_CHILD_SUBREAPER: Final = 36
MOST_DESCRIPTORS: Final = 16
# threads that a fork may lose: both give back what is no longer used
SPARED: Final = {"jemalloc_bg_thd", "polars-ooc-clea"}
# what runs, their workers and the commands of trials import, now or when they need it
WARM: Final = (
    "deepspeed",
    "transformers.integrations.deepspeed",
    "transformers.modeling_utils",
    "data_checks.validation",
    "flows.cli",
    "flows.distill",
    "wind.store.object_storage",
    "wind.rewards.functions",
    "wind.training.export",
    "wind.training.loop",
    "wind.audit.verification",
    "wind.stages.worker",
)


def main() -> None:
    """Serve until the process that started this one ends. In a forked process: return what it is to
    do.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for name in WARM:
        import_module(name)
    names = {
        path.read_text().strip()
        for path in Path("/proc/self/task").glob("[0-9]*/comm")
        if path.parent.name != str(os.getpid())
    }
    assert names <= SPARED, f"a fork would lose the threads {sorted(names - SPARED)}"
    gc.freeze()
    serve(sys.argv[1])()


def serve(address: str) -> Callable[[], None]:
    """Fork whatever is asked for at `address`; returns only in a forked process, with what that is
    to do.
    """
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    askers: dict[socket.socket, int | None] = {}  # the process that was forked for each
    while True:
        watched: list[Any] = [listener, woken, *askers]
        ready, _, _ = select.select(watched, [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            _reap(askers)
        if listener in ready:
            askers[listener.accept()[0]] = None
        for asker in [each for each in ready if each in askers]:
            if askers[asker] is not None:  # all that can come is its end
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(askers[asker] or 0, signal.SIGKILL)
                _forget(askers, asker)
                continue
            message, descriptors, _, _ = socket.recv_fds(asker, LARGEST, MOST_DESCRIPTORS)
            if not message:
                _forget(askers, asker)
                continue
            process = os.fork()
            if process == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(woken)
                os.close(wake)
                # the sockets go with this frame
                return functools.partial(_become, json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            askers[asker] = process
            asker.send(str(process).encode())


def _forget(askers: dict[socket.socket, int | None], asker: socket.socket) -> None:
    del askers[asker]
    asker.close()


def _reap(askers: dict[socket.socket, int | None]) -> None:
    """Tell whoever asked for a process how it ended; orphans that fell to this process are told to
    nobody.
    """
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended == 0:
            return
        for asker in [each for each, process in askers.items() if process == ended]:
            with contextlib.suppress(BrokenPipeError):
                asker.send(str(status).encode())
            _forget(askers, asker)


def _become(wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Be the process that was asked for, until it ends."""
    os.setsid()
    free = max(wanted["descriptors"]) + 1
    apart = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, free) for descriptor in descriptors]
    for number, descriptor in zip(wanted["descriptors"], apart, strict=True):
        os.dup2(descriptor, number)
    for descriptor in {*descriptors, *apart} - set(wanted["descriptors"]):
        os.close(descriptor)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.path[:0] = [
        wanted["folder"],
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    sys.argv = [wanted["module"], *wanted["arguments"]]
    sys.modules[wanted["module"]].main()


if __name__ == "__main__":
    main()
