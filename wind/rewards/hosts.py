"""The hosts of this process, one for each user's function.

What a host does is in `wind.rewards.host`. A host ends with this process, and everything that the
user's code started ends with the host.
"""

import atexit
import json
import os
import re
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from wind.code.observed import Observed, from_report, note
from wind.errors import killed_by
from wind.machine import processes
from wind.machine.terminal import complain
from wind.redaction import redacted_lines

# A run has a match, and rewards: those of a mix and judges. The one that has waited longest ends
# when a further one starts.
WARM: Final = 8
LAST_LINES: Final = 4
# for the last lines of a dead host to arrive
LOG_SECONDS: Final = 2.0
# Variables that torchrun sets for a rank: a library of the user's would take them for its own, and
# wait for peers that never come.
RANKS: Final = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
)
SCRIPT: Final = Path(__file__).with_name("host.py")


class EndedError(Exception):
    """A host ended before it answered.

    `how` it ended, and what it `said` last.
    """

    def __init__(self, how: str, said: str) -> None:
        super().__init__(f"{how}; {said}")
        self.how = how
        self.said = said


class Host:
    """A process that runs one of the user's functions.

    Raises OSError if it cannot be started.
    """

    def __init__(self, device: str) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            # -u and faulthandler: its last words are reported, even if it crashes; -B: nothing is
            # written beside the user's files
            command = processes.python(
                "-u", "-B", "-X", "faulthandler", str(SCRIPT), str(theirs.fileno())
            )
            self._process = processes.start(
                command,
                env=_environment(device),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                descendants=True,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        # what the user's code had used when it last answered
        self.observed = Observed()
        self._said: deque[str] = deque(maxlen=50)
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def ask(self, request: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
        """Send `request` and return the answer.

        Raises TimeoutError if there is none after `seconds`, EndedError if the host ended. Neither
        leaves a process behind, nor does an interruption.
        """
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._line())
            report = answer.pop("observed")
            # The caller may be a rank; the host is none.
            report["variables"] = {
                name: each
                for name, each in report["variables"].items()
                if not RANKS.fullmatch(name)
            }
            self.observed = from_report(report)
            note(self, self.observed)
        except ConnectionError:
            raise self._ended() from None
        except BaseException:
            self.end()
            raise
        return answer

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process and everything that the user's code has started."""
        self._process.end()
        self._listening.join(LOG_SECONDS)
        self._socket.close()

    def _line(self) -> bytes:
        received = bytearray()
        while not received.endswith(b"\n"):
            if not (more := self._socket.recv(1 << 20)):
                raise ConnectionError
            received += more
        return bytes(received)

    def _listen(self) -> None:
        """Copy what the process prints, without secrets, to this process's own log."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in redacted_lines(stdout):
                self._said.append(line.strip())
                # a full disk or a closed stream; the pipe must be read on, or it would fill
                with suppress(OSError, ValueError):
                    complain(line.rstrip("\r\n"))

    def _ended(self) -> EndedError:
        code = self._process.wait()
        self.end()
        said = [line for line in self._said if line]
        fatal = [
            number for number, line in enumerate(said) if line.startswith("Fatal Python error")
        ]
        last = said[fatal[-1] :][:LAST_LINES] if fatal else said[-LAST_LINES:]
        words = f"its last words: {' | '.join(last)}" if last else "it said nothing"
        if code >= 0:
            return EndedError(f"ended its process with exit code {code}", words)
        return EndedError(killed_by(-code), words)


# the most recently used one is last
_warm: dict[tuple[str, ...], Host] = {}
# in a forked process: the hosts of its parent
_of_parent: list[Host] = []


def warm_host(key: tuple[str, ...]) -> Host | None:
    """Return the host kept under `key`, if it still runs."""
    host = _warm.pop(key, None)
    if host is None:
        return None
    if not host.is_alive():
        host.end()
        return None
    _warm[key] = host
    return host


def keep_warm(key: tuple[str, ...], host: Host) -> None:
    """Keep `host` for the next call under `key`.

    At most `WARM` hosts are kept in all.
    """
    _warm[key] = host
    while len(_warm) > WARM:
        _warm.pop(next(iter(_warm))).end()


def close() -> None:
    """End every host of this process."""
    while _warm:
        _warm.popitem()[1].end()


def _disown() -> None:
    _of_parent.extend(_warm.values())
    _warm.clear()


def _environment(device: str) -> dict[str, str]:
    """Return this process's environment without torchrun's variables.

    If this process computes on one GPU, the host sees only that one.
    """
    environment = {
        name: value for name, value in processes.environment().items() if not RANKS.fullmatch(name)
    }
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        visible = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
        environment["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible else number
    return environment


atexit.register(close)
os.register_at_fork(after_in_child=_disown)
