"""The processes of a training: this one, or ranks under torchrun.

Ranks meet through files, never through a port that listens on a network, and communicate over the
loopback interface. Nothing outlives the process that started it: unless a training finishes, the
agent is ended, and with it the ranks, before the call returns. An agent whose training finished
waits for this process's next one: importing its libraries is most of what a start costs.
"""

import atexit
import codecs
import contextlib
import json
import multiprocessing.forkserver
import multiprocessing.process
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from wind.code.observed import Observed, note
from wind.errors import TrainingError, WindError, by_name
from wind.files import atomic_write
from wind.machine import processes
from wind.redaction import Redactor
from wind.stages import Progress
from wind.training.assignments import Assignment, Trained

POLL_SECONDS: Final = 0.1
LAST_LINES: Final = 4
LOG: Final = "torchrun.log"
# appears in the folder once every rank has finished successfully
FINISHED: Final = "finished"
LOOPBACK: Final = "lo"
CHUNK_BYTES: Final = 2**16
# Modules that take seconds to import. None of them may import pyarrow or polars: a fork would lose
# their threads.
PRELOADED: Final = [
    "deepspeed",
    "transformers.integrations.deepspeed",
    "transformers.modeling_utils",
]


class _Agent:
    """torchrun's agent on this machine, which starts the ranks of successive trainings."""

    def __init__(self, device: str) -> None:
        self._environment = _environment(device)
        self._process = processes.start(
            processes.python("-m", "wind.training.processes", device),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            # the ranks
            descendants=True,
        )

    def serves(self, device: str) -> bool:
        """Return True if it is alive and its environment suits `device`."""
        return self._process.poll() is None and self._environment == _environment(device)

    def train(self, folder: Path, module: str, logs: "list[_Log]", progress: Progress) -> bool:
        """Return True once the ranks training the assignment in `folder` finish.

        Returns False if the agent ends instead. The first of `logs` belongs to the agent, the
        others to the ranks.
        """
        assert self._process.stdin is not None
        # it has died, as the loop below will see
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(
                json.dumps([os.fspath(folder), module, [log.raw for log in logs]]).encode() + b"\n"
            )
            self._process.stdin.flush()
        while not (folder / FINISHED).exists():
            if self._process.poll() is not None:
                return False
            _tell(folder, progress)
            for log in logs:
                log.write()
            time.sleep(POLL_SECONDS)
        _tell(folder, progress)
        return True

    def end(self) -> None:
        """End it and the ranks; none of them writes afterwards."""
        self._process.end()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class _Log:
    """Growing log of a training process, with secrets redacted.

    The process itself writes to an unnamed file: if we are killed before we have read it, nothing
    of it is left.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x", encoding="utf-8")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as named:
            self._said = os.open(named.name, os.O_RDONLY)
        self.raw = f"/proc/{os.getpid()}/fd/{self._said}"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._redactor = Redactor()

    def write(self) -> None:
        """Append the output since the last call."""
        while said := os.read(self._said, CHUNK_BYTES):
            self._file.write(self._redactor.feed(self._decoder.decode(said)))
        self._file.flush()

    def end(self) -> None:
        """Append the remaining output and close the file."""
        self.write()
        self._file.write(
            self._redactor.feed(self._decoder.decode(b"", final=True)) + self._redactor.end()
        )
        self._file.close()
        os.close(self._said)


_agent: _Agent | None = None


@atexit.register
def close() -> None:
    """End the agent waiting for the next training, if there is one."""
    global _agent
    agent, _agent = _agent, None
    if agent is not None:
        agent.end()


def train_in_ranks(assignment: Assignment[Any], module: str, progress: Progress) -> Trained:
    """Train in `training.ranks` processes under torchrun.

    `module` names the module that defines SPEC and open_source, such as `wind.training.rank`.
    Raises the error of the rank that failed, or TrainingError with the last lines of its log.
    """
    global _agent
    folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=assignment.work))
    atomic_write(folder / "assignment.json", assignment.model_dump_json().encode())
    agent, _agent = _agent, None
    if agent is None or not agent.serves(assignment.device):
        if agent is not None:
            agent.end()
        agent = _Agent(assignment.device)
    with _logs(folder, assignment.spec.training.ranks) as logs:
        finished = False
        try:
            finished = agent.train(folder, module, logs, progress)
        finally:
            if not finished:
                agent.end()
    if not finished:
        raise _failure(folder)
    _agent = agent
    for path in folder.glob("observed-*.json"):
        note(path, Observed.model_validate_json(path.read_bytes()))
    return Trained.model_validate_json((folder / "trained.json").read_bytes())


def main() -> None:
    """Run torchrun's agent: `python -m wind.training.processes DEVICE`.

    Each line of JSON on standard input names the next training. On a CPU, ranks are forked from a
    process that imported the engine once, which is most of what starting one costs; CUDA does not
    survive a fork. A failed training ends the agent.
    """
    device = sys.argv[1]
    if device == "cpu":
        _start_forkserver()
    for line in sys.stdin:
        folder, module, (log, *logs) = json.loads(line)
        # including the traceback of whatever ends this process
        _print_to(log)
        _launch(Path(folder), module, logs, device)
        _print_to(os.devnull)
        atomic_write(Path(folder) / FINISHED, b"")


def _start_forkserver() -> None:
    """Start the process from which ranks are forked.

    Its socket is reached through an open descriptor rather than a name: an address holds about a
    hundred characters, which a temporary folder may exceed, and the socket file would never be
    removed, since this process is killed when it is no longer needed.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    this: Any = multiprocessing.process.current_process()
    server: Any = multiprocessing.forkserver._forkserver
    with tempfile.TemporaryDirectory() as folder:
        this._config["tempdir"] = f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}"
        server.ensure_running()
        server._forkserver_address = (
            f"/proc/self/fd/{os.open(server._forkserver_address, os.O_PATH)}"
        )
    del this._config["tempdir"]


def _launch(folder: Path, module: str, logs: list[str], device: str) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from wind.training.rank import train_one_of_many

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=len(logs),
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_configs={"store_type": "file"},
        rdzv_endpoint=str(folder / "rendezvous"),
        local_addr="127.0.0.1",
        start_method="forkserver" if device == "cpu" else "spawn",
        # the default is the temporary folder, where nobody removes them
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torchelastic")),
    )
    elastic_launch(config, train_one_of_many)(folder, module, logs)


@contextmanager
def _logs(folder: Path, ranks: int) -> Iterator[list[_Log]]:
    """Open the logs of torchrun's agent and the ranks.

    Nobody writes to them afterwards.
    """
    names = [LOG, *(f"rank-{rank}.log" for rank in range(ranks))]
    logs: list[_Log] = []
    try:
        for name in names:
            logs.append(_Log(folder / name))
        yield logs
    finally:
        for log in logs:
            log.end()


def _print_to(path: str) -> None:
    """Redirect the output of this process and its children to `path`."""
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _environment(device: str) -> dict[str, str]:
    interface = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    return processes.environment(**interface, DS_ACCELERATOR=device, HF_HUB_OFFLINE="1")


def _tell(folder: Path, progress: Progress) -> None:
    try:
        done, total = (folder / "progress").read_text().split()
    except FileNotFoundError:
        return
    progress(int(done), int(total))


def _failure(folder: Path) -> WindError:
    """Return the error of the rank that probably failed first."""
    for path in sorted(folder.glob("error-*")):
        kind, message = path.read_text().split("\n", 1)
        return by_name(kind, message)
    summary = (folder / LOG).read_text(errors="replace")
    failures = [
        (int(rank), int(code))
        for rank, code in re.findall(r"rank\s+: (\d+) .*\n\s+exitcode\s+: (-?\d+)", summary)
    ]
    # A killed rank takes the others with it: they fail on the lost connection (code 1) or are ended
    # by torchrun (SIGTERM).
    failures.sort(key=lambda failure: (failure[1] == -signal.SIGTERM, failure[1] > 0))
    if not failures:
        return TrainingError(f"torchrun failed: {_last_lines(folder / 'torchrun.log')}")
    rank, code = failures[0]
    log = folder / f"rank-{rank}.log"
    return TrainingError(
        f"rank {rank} of the training ended with exit code {code}: {_last_lines(log)} (log: {log})"
    )


def _last_lines(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    said = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in lines]
    return (
        " | ".join([line for line in said if line.strip("^~ ")][-LAST_LINES:]) or "it said nothing"
    )


if __name__ == "__main__":
    main()
