"""Keep the last checkpoint of a training on an object store.

Another machine can then resume an unfinished training from it. It lies under
`<root>/partial/training-checkpoints/<key>/`, laid out as in the work folder; every rank copies the
files it wrote, and the marker is written last. If the store is a folder, the work folder itself
lies there, and nothing is copied.
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
    """Copy the checkpoint after `steps` optimizer steps from `work` to the store.

    Removes the one before it. Every rank must call it.
    """
    if isinstance(store.storage, LocalStorage):
        return
    shared, step = _shared(work), step_folder(steps)
    marker = (work / step / MARKER).read_bytes()
    for name in written_by(world.rank, json_value(marker)["files"]):
        path = work / step / name
        place = posixpath.normpath(f"{shared}/{step}/{name}")
        # files that earlier checkpoints share are already there
        if store.storage.size(place) != path.stat().st_size:
            store.storage.put(place, path)
    # the marker must not exist before every rank's files do
    torch.distributed.barrier()
    if world.rank == 0:
        store.storage.write(f"{shared}/{step}/{MARKER}", marker)
        for other in store.storage.names(shared):
            if other.startswith(PREFIX) and other != step:
                store.storage.delete(f"{shared}/{other}")
    torch.distributed.barrier()


def fetch_checkpoint(store: Store, work: Path) -> None:
    """Copy the store's last checkpoint to `work`, unless it is there already."""
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
            # a copy that was interrupted, or not a checkpoint
            continue
        if here.size(f"{step}/{MARKER}") is None:
            for name in names:
                place = posixpath.normpath(f"{step}/{name}")
                with here.building(place) as path, path.open("wb") as copy:
                    copy.writelines(store.storage.chunks(f"{shared}/{place}"))
            here.write(f"{step}/{MARKER}", marker)
        return


def drop_checkpoints(store: Store, work: Path) -> None:
    """Remove the store's checkpoints of the finished training in `work`."""
    if not isinstance(store.storage, LocalStorage):
        store.storage.delete(_shared(work))


def _shared(work: Path) -> str:
    return f"{CHECKPOINTS}/{work.name}"
