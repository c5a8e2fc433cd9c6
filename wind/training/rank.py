"""One rank of a training: this process, or one of several.

A module defines what is trained: `SPEC` is the class of its spec, and `open_source` returns its
rows. This module is for stored rows.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wind.code.digests import refuse_edited
from wind.code.observed import noting
from wind.errors import TrainingError, WindError
from wind.files import atomic_write
from wind.machine.environment import variables
from wind.stages import Progress
from wind.store.datasets import Store
from wind.training import TrainingSpec
from wind.training.assignments import Assignment, Trained, World

if TYPE_CHECKING:
    from wind.training.row_sources import RowSource

SPEC = TrainingSpec
# Maximum wait for a rank that samples, rewards, writes, hashes or uploads longer than the others:
# NCCL's own ten minutes end a training whose checkpoint has a terabyte. DeepSpeed's groups keep the
# ten minutes, so ranks meet first in a barrier of this group.
GROUP_TIMEOUT: Final = timedelta(hours=2)
# wait before a failed rank ends; torchrun looks for ended ranks ten times a second
SECONDS_FOR_OTHERS = 1.0
# arguments: the assignment, the engine at its first step, the rank
OpenSource = Callable[[Assignment[Any], Any, World], "RowSource"]


def train_here(assignment: Assignment[Any], open_source: OpenSource, progress: Progress) -> Trained:
    """Train with this process as the only rank, on the CPU."""
    # DeepSpeed reads both, the first when it is imported
    with variables({"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}):
        return _train_here(assignment, open_source, progress)


def _train_here(
    assignment: Assignment[Any], open_source: OpenSource, progress: Progress
) -> Trained:
    import deepspeed
    import torch
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    # keeps DeepSpeed from compiling anything when its communication starts
    import wind.training.engine  # noqa: F401

    threads = torch.get_num_threads()
    # DeepSpeed prints, and a program may be reading our standard output
    with contextlib.redirect_stdout(sys.stderr):
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(dist_init_required=False)
        try:
            trained = _train(
                assignment, open_source, World(rank=0, ranks=1, device="cpu"), progress
            )
        finally:
            # torch's group, and DeepSpeed's record of it
            deepspeed.comm.destroy_process_group()
            torch.set_num_threads(threads)
    assert trained is not None, "rank 0 returns what was trained"
    return trained


def train_one_of_many(folder: Path, module: str, logs: list[str]) -> None:
    """Train as one rank of the assignment in `folder`, then exit.

    Reads torchrun's RANK, WORLD_SIZE and LOCAL_RANK. Output goes to the file that `logs` names for
    this rank.
    """
    kind = import_module(module)
    rank = int(os.environ["RANK"])
    log = os.open(logs[rank], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    written = (folder / "assignment.json").read_bytes()
    assignment: Assignment[Any]
    assignment = Assignment[kind.SPEC].model_validate_json(written)  # type: ignore[name-defined]
    try:
        with noting() as observed:
            trained = _join_and_train(assignment, kind.open_source, folder)
        refuse_edited(assignment.spec.stage)
        atomic_write(folder / f"observed-{rank}.json", observed.all().model_dump_json().encode())
    except WindError as error:
        atomic_write(folder / f"error-{rank}", f"{type(error).__name__}\n{error}".encode())
        sys.exit(1)
    except RuntimeError:
        # a killed rank takes the others' connections with it, and torchrun must see it first
        time.sleep(SECONDS_FOR_OTHERS)
        raise
    if trained:
        atomic_write(folder / "trained.json", trained.model_dump_json().encode())


def open_source(assignment: Assignment[TrainingSpec], engine: Any, world: World) -> "RowSource":
    """Return the rows of the spec's stored datasets."""
    from wind.training.row_sources import StoredRows

    return StoredRows(assignment.spec, Store(assignment.root))


def join(kind: str, folder: Path) -> World:
    """Join the other ranks in `folder`, each with its own device.

    The `kind` of device is "cpu" or "cuda". RANK, WORLD_SIZE and LOCAL_RANK in the environment
    identify this rank. Raises TrainingError if there are too few devices.
    """
    import torch

    rank, ranks, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    bound = None
    if kind == "cuda":
        if torch.cuda.device_count() < ranks:
            raise TrainingError(
                f"training.ranks is {ranks}, but this machine has {torch.cuda.device_count()} "
                "GPUs: lower it"
            )
        torch.cuda.set_device(local)
        # With a device, NCCL connects at once and barriers know it; for a single rank, splitting
        # off DeepSpeed's groups fails.
        if ranks > 1:
            bound = torch.device("cuda", local)
    # A store by path, since not every path can be written as a URL.
    store = torch.distributed.FileStore(  # type: ignore[attr-defined]  # it is documented
        str(folder / "group"), ranks
    )
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=ranks, timeout=GROUP_TIMEOUT, device_id=bound
    )
    return World(rank=rank, ranks=ranks, device=f"cuda:{local}" if kind == "cuda" else "cpu")


def _join_and_train(
    assignment: Assignment[Any], open_source: OpenSource, folder: Path
) -> Trained | None:
    import torch

    world = join(assignment.device, folder)
    try:
        return _train(assignment, open_source, world, ProgressFile(folder / "progress"))
    finally:
        torch.distributed.destroy_process_group()


def _train(
    assignment: Assignment[Any], open_source: OpenSource, world: World, progress: Progress
) -> Trained | None:
    import torch

    from wind.training.loop import train_rank

    torch.set_num_threads(threads_of(world))
    return train_rank(assignment, open_source, world, progress)


def threads_of(world: World) -> int:
    """Return the number of threads that this rank computes with on the CPU.

    One in a training on the CPU, since more would change floats. Beside a GPU, its share of the
    cores: offloaded optimizer state is updated on the CPU, number by number.
    """
    if world.device == "cpu":
        return 1
    return max(1, len(os.sched_getaffinity(0)) // world.ranks)


class ProgressFile:
    """Progress in a file that the starting process reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, done: int, total: int) -> None:
        """Record that `done` of `total` steps are finished."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(f"{done} {total}")
        partial.replace(self._path)
