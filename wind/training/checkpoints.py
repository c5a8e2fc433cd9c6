"""Checkpoints of an unfinished training: DeepSpeed's own, the state of the row source, the rows so
far, and a marker, last.

A checkpoint is a folder `step-00000100/` and counts only if its marker is there and every file
still has the recorded checksum. Each rank reads its own files back: one alone would hash a terabyte
of a large training while all others wait for it. The one before is removed after the marker of the
new one was written, so a process killed at any moment leaves a usable one. What cannot be used is
removed, and the training starts from the one before or from scratch.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from wind.files import atomic_write
from wind.fingerprints import file_digest
from wind.nesting import json_value
from wind.store.stamps import is_ours, stamped
from wind.training.assignments import Checkpoint, Row
from wind.training.row_sources import RowSource

MARKER = "complete.json"
TAG = "engine"
PREFIX = "step-"  # of the folders of checkpoints
# in the name of a file: the rank, where it is not the first
WRITER = re.compile(r"(?:pp_rank_|anchor-)(\d+)[_.][^/]*$")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The last usable checkpoint under `folder`; unusable ones are removed. To be called before any
    rank starts.
    """
    for candidate in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        if (checkpoint := _read(candidate)) is not None:
            return checkpoint
        shutil.rmtree(candidate)
    return None


def save_checkpoint(
    engine: Any, source: RowSource, folder: Path, steps: int, rows: list[Row]
) -> None:
    """Save engine and source after `steps` optimiser steps. Every rank must call it; `rows` are
    those of rank 0.
    """
    target = folder / step_folder(steps)
    # Frozen weights are the start policy's: each checkpoint would hold them again.
    engine.save_checkpoint(str(target), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    beside = source.save(target)
    torch.distributed.barrier()  # every rank's files are there before the marker says so
    within = [path for path in sorted(target.rglob("*")) if path.is_file()]
    names = [os.path.relpath(path, target) for path in [*within, *beside]]
    mine = {name: file_digest(target / name) for name in written_by(engine.global_rank, names)}
    digests: list[dict[str, str]] = [{}] * engine.world_size
    torch.distributed.all_gather_object(digests, mine)
    if engine.global_rank == 0:
        files = {name: digest for of_rank in digests for name, digest in of_rank.items()}
        marker = {"steps": steps, "rows": rows, "files": files, "folder": folder.name}
        atomic_write(target / MARKER, stamped("checkpoint", marker))
        for other in folder.glob(f"{PREFIX}*"):
            if other != target:
                shutil.rmtree(other)
    torch.distributed.barrier()


def written_by(rank: int, names: Iterable[str]) -> list[str]:
    """Those of the files `names` of a checkpoint that `rank` wrote: what has no rank in its name is
    the first one's.
    """
    writers = {name: WRITER.search(name) for name in names}
    return [name for name, writer in writers.items() if (int(writer[1]) if writer else 0) == rank]


def step_folder(steps: int) -> str:
    """The folder of the checkpoint after `steps` optimiser steps; they sort by it."""
    return f"{PREFIX}{steps:08d}"


def load_checkpoint(engine: Any, checkpoint: Checkpoint) -> None:
    """Put weights and optimizer state of `checkpoint` into the engine. Every rank must call it."""
    is_whole = all(parameter.requires_grad for parameter in engine.module.parameters())
    engine.load_checkpoint(
        checkpoint.folder, tag=TAG, load_module_strict=is_whole, load_lr_scheduler_states=False
    )


def is_our_checkpoint(marker: Any, work: str) -> bool:
    """Whether we wrote a checkpoint with that `marker` in the folder `work`: to load one is to run
    what it says.
    """
    return isinstance(marker, dict) and is_ours("checkpoint", marker) and marker["folder"] == work


def _read(folder: Path) -> Checkpoint | None:
    try:
        marker = json_value((folder / MARKER).read_bytes())
        if not is_our_checkpoint(marker, folder.parent.name):
            return None
        if any(file_digest(folder / name) != digest for name, digest in marker["files"].items()):
            return None
        return Checkpoint(steps=marker["steps"], rows=marker["rows"], folder=str(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return None
