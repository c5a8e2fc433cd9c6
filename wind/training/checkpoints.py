"""Checkpoints of an unfinished training.

A checkpoint is a folder `step-00000100/` with DeepSpeed's own checkpoint, the state of the row
source, the rows so far, and, written last, a marker. It counts only if its marker exists and every
file still has the recorded checksum. Each rank reads its own files back: a single rank would hash a
terabyte of a large training while all others wait. The previous checkpoint is removed after the
marker of the new one is written, so a process killed at any moment leaves a usable one. Unusable
checkpoints are removed, and the training starts from the one before or from scratch.
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
# of checkpoint folders
PREFIX = "step-"
# matches the rank in a file name; the first rank's files may have none
WRITER = re.compile(r"(?:pp_rank_|anchor-)(\d+)[_.][^/]*$")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the last usable checkpoint under `folder`, or None.

    Removes unusable ones. Call it before any rank starts.
    """
    for candidate in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        if (checkpoint := _read(candidate)) is not None:
            return checkpoint
        shutil.rmtree(candidate)
    return None


def save_checkpoint(
    engine: Any, source: RowSource, folder: Path, steps: int, rows: list[Row]
) -> None:
    """Save engine and source after `steps` optimizer steps.

    Every rank must call it; `rows` are those of rank 0.
    """
    target = folder / step_folder(steps)
    # Frozen weights equal the starting policy's: every checkpoint would repeat them.
    engine.save_checkpoint(str(target), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    beside = source.save(target)
    # the marker must not exist before every rank's files do
    torch.distributed.barrier()
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
    """Return the checkpoint files among `names` that `rank` wrote.

    A file without a rank in its name was written by the first rank.
    """
    writers = {name: WRITER.search(name) for name in names}
    return [name for name, writer in writers.items() if (int(writer[1]) if writer else 0) == rank]


def step_folder(steps: int) -> str:
    """Return the checkpoint folder's name after `steps` optimizer steps.

    Names sort by step.
    """
    return f"{PREFIX}{steps:08d}"


def load_checkpoint(engine: Any, checkpoint: Checkpoint) -> None:
    """Restore weights and optimizer state from `checkpoint`; every rank must call it."""
    is_whole = all(parameter.requires_grad for parameter in engine.module.parameters())
    engine.load_checkpoint(
        checkpoint.folder, tag=TAG, load_module_strict=is_whole, load_lr_scheduler_states=False
    )


def is_our_checkpoint(marker: Any, work: str) -> bool:
    """Return True if we wrote this checkpoint in the folder `work`.

    Loading a checkpoint runs code that it names.
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
