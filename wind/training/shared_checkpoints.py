"""The last checkpoint of an unfinished training, kept on an object store too, so that another
machine can go on from it.

It lies under `<root>/partial/training-checkpoints/<key>/`, laid out as in the work folder; every
rank copies the files it wrote, and the marker is written last. In a store that is a folder the work
folder lies there itself, and nothing is copied.
"""

import posixpath
from pathlib import Path

import torch

from wind.nesting import json_value
from wind.store.datasets import Store
from wind.store.layout import CHECKPOINTS
from wind.store.storage import LocalStorage
from wind.training.assignments import World
from wind.training.checkpoints import MARKER, PREFIX, is_our_checkpoint, step_folder, written_by


def share_checkpoint(store: Store, work: Path, steps: int, world: World) -> None:
    """Copy the checkpoint after `steps` optimiser steps from the folder `work` to the store; the
    one before it goes.

    Every rank must call it.
    """
    if isinstance(store.storage, LocalStorage):
        return
    shared, step = _shared(work), step_folder(steps)
    marker = (work / step / MARKER).read_bytes()
    for name in written_by(world.rank, json_value(marker)["files"]):
        path = work / step / name
        place = posixpath.normpath(f"{shared}/{step}/{name}")
        # what earlier checkpoints name too is there
        if store.storage.size(place) != path.stat().st_size:
            store.storage.put(place, path)
    torch.distributed.barrier()  # every rank's files are there before the marker says so
    if world.rank == 0:
        store.storage.write(f"{shared}/{step}/{MARKER}", marker)
        for other in store.storage.names(shared):
            if other.startswith(PREFIX) and other != step:
                store.storage.delete(f"{shared}/{other}")
    torch.distributed.barrier()


def fetch_checkpoint(store: Store, work: Path) -> None:
    """Copy the last checkpoint in the store to the folder `work`, unless that has one as new."""
    if isinstance(store.storage, LocalStorage):
        return
    shared, here = _shared(work), LocalStorage(work)
    for step in sorted(store.storage.names(shared), reverse=True):
        try:
            marker = store.storage.read(f"{shared}/{step}/{MARKER}")
            names = list(json_value(marker)["files"])
            if not is_our_checkpoint(json_value(marker), work.name):
                continue
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # its copying was interrupted, or it is no checkpoint
        if here.size(f"{step}/{MARKER}") is None:
            for name in names:
                place = posixpath.normpath(f"{step}/{name}")
                with here.building(place) as path, path.open("wb") as copy:
                    copy.writelines(store.storage.chunks(f"{shared}/{place}"))
            here.write(f"{step}/{MARKER}", marker)
        return


def drop_checkpoints(store: Store, work: Path) -> None:
    """Remove what the store keeps for the folder `work`: the training is finished."""
    if not isinstance(store.storage, LocalStorage):
        store.storage.delete(_shared(work))


def _shared(work: Path) -> str:
    return f"{CHECKPOINTS}/{work.name}"
