"""The processes of a training: this one, or ranks under torchrun on this machine.

Ranks meet over files, never over a port that listens on a network, and talk over the loopback interface. Nothing outlives the
process that started it: torchrun and every rank ask the kernel to be killed with their parent, and a training that ends in any
other way than by finishing kills torchrun, and so the ranks, before it returns.
"""

import fcntl
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from wind.errors import TrainingError, WindError, by_name
from wind.files import atomic_write
from wind.lifeline import die_with
from wind.stages import Progress
from wind.training.assignments import Assignment, Trained

POLL_SECONDS: Final = 0.1
LAST_LINES: Final = 4
LOOPBACK: Final = "lo"
# What takes seconds to import. Nothing that imports pyarrow or polars: a fork would lose their threads.
PRELOADED: Final = ["wind.forkserver", "deepspeed", "transformers.integrations.deepspeed", "transformers.modeling_utils"]


def train_in_ranks(assignment: Assignment[Any], module: str, progress: Progress) -> Trained:
    """Train in `training.ranks` processes under torchrun; `module` says what, see `wind.training.rank`.

    Raises the error of the rank that failed, or TrainingError with the last lines of its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=assignment.work))
    what = [module, str(assignment.spec.training.ranks), assignment.device]
    atomic_write(folder / "assignment.json", assignment.model_dump_json().encode())
    with _gone(folder), (folder / "torchrun.log").open("wb") as log:
        torchrun = subprocess.Popen(
            [sys.executable, "-m", "wind.training.processes", str(folder), str(os.getpid()), *what],
            stdin=subprocess.DEVNULL,  # a worker's own input is a lifeline that no child may hold
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(assignment.device),
        )
        try:
            while torchrun.poll() is None:
                _tell(folder, progress)
                _wait(torchrun)
        finally:
            torchrun.kill()
            torchrun.wait()
    if torchrun.returncode:
        raise _failure(folder)
    _tell(folder, progress)
    return Trained.model_validate_json((folder / "trained.json").read_bytes())


def hold(folder: Path) -> int:
    """Take part in the lock that tells the starter this rank lives; held until the process ends."""
    descriptor = os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def main() -> None:
    """torchrun's agent: `python -m wind.training.processes FOLDER PARENT MODULE RANKS DEVICE`, which starts a process per rank.

    On a CPU ranks are forked from a process that imported the engine once, which is most of what starting one costs; CUDA does
    not survive a fork.
    """
    folder, parent, module, ranks, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
    die_with(parent)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from wind.training.rank import train_one_of_many

    multiprocessing.set_forkserver_preload(PRELOADED)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_configs={"store_type": "file"},
        rdzv_endpoint=str(folder / "rendezvous"),
        local_addr="127.0.0.1",
        start_method="forkserver" if device == "cpu" else "spawn",
    )
    elastic_launch(config, train_one_of_many)(folder, module)


@contextmanager
def _gone(folder: Path) -> Iterator[None]:
    """After the block, wait until the last rank has ended: a rank that is being killed may still be writing."""
    try:
        yield
    finally:
        descriptor = os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.close(descriptor)


def _environment(device: str) -> dict[str, str]:
    interface = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    # Each rank computes with one thread: the number of threads moves floats, and processes are the way to more cores.
    return {**os.environ, **interface, "DS_ACCELERATOR": device, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _tell(folder: Path, progress: Progress) -> None:
    try:
        done, total = (folder / "progress").read_text().split()
    except FileNotFoundError:
        return
    progress(int(done), int(total))


def _failure(folder: Path) -> WindError:
    """The error of the rank that failed first, as far as can be told."""
    for path in sorted(folder.glob("error-*")):
        kind, message = path.read_text().split("\n", 1)
        return by_name(kind, message)
    summary = (folder / "torchrun.log").read_text(errors="replace")
    failures = [(int(rank), int(code)) for rank, code in re.findall(r"rank\s+: (\d+) .*\n\s+exitcode\s+: (-?\d+)", summary)]
    # A killed rank takes the others with it: they fail on the lost connection (code 1) or are ended by torchrun (SIGTERM).
    failures.sort(key=lambda failure: (failure[1] == -signal.SIGTERM, failure[1] > 0))
    if not failures:
        return TrainingError(f"torchrun failed: {_last_lines(folder / 'torchrun.log')}")
    rank, code = failures[0]
    log = folder / f"rank-{rank}.log"
    return TrainingError(f"rank {rank} of the training ended with exit code {code}: {_last_lines(log)} (log: {log})")


def _last_lines(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    said = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in lines]
    return " | ".join([line for line in said if line.strip("^~ ")][-LAST_LINES:]) or "it said nothing"


if __name__ == "__main__":
    main()
