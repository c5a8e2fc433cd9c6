"""Incoming files: what a store takes in from outside or from training.

Files are measured before they are read. Only plain files enter, never a FIFO, a device or a link
that leads out of its folder: see `wind.files.open_plain`.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wind.errors import InputError
from wind.files import open_plain
from wind.fingerprints import stream_digest
from wind.store import sealed_json
from wind.store.handles import StoredFile
from wind.store.layout import MANIFEST, MODEL_FILES, WEIGHTS
from wind.store.storage import CHUNK_BYTES

# Bytes of a safetensors header: the limit of the library itself.
LARGEST_HEADER: Final = 100_000_000


def model_files(folder: Path) -> list[Path]:
    """Return the files that make up a Hugging Face model.

    These are config, tokenizer, templates and safetensors, nothing else. Raises NotPlainError for
    anything but a plain file, or for a link that leads out of the folder.
    """
    paths = [
        path
        for path in sorted(folder.iterdir())
        if MODEL_FILES.fullmatch(path.name) and path.name != MANIFEST
    ]
    sizes(paths, folder)
    return paths


def sizes(paths: Sequence[Path], within: Path | None) -> dict[str, int]:
    """Return the size of each file in bytes, by name.

    Raises NotPlainError as `open_plain` does.
    """
    found = {}
    for path in paths:
        with open_plain(path, within) as file:
            found[path.name] = os.fstat(file.fileno()).st_size
    return found


def no_room(paths: Sequence[Path], target: Path, within: Path | None) -> str | None:
    """Return why `target` has no room for `paths`; None if it has.

    `target` need not exist yet. Sizes are apparent sizes: a sparse file is written out in full.
    """
    disk = next(
        folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists()
    )
    needed, free = sum(sizes(paths, within).values()), shutil.disk_usage(disk).free
    if needed <= free:
        return None
    return (
        f"a copy of {within or paths[0]} takes {needed} bytes, and {disk} has {free} free: "
        "free space, or set `root` to a folder with more"
    )


def stored_file(path: Path, within: Path | None) -> StoredFile:
    """Return the manifest's entry for the file at `path`."""
    with open_plain(path, within) as file:
        return StoredFile(
            name=path.name, bytes=os.fstat(file.fileno()).st_size, sha256=stream_digest(file)
        )


def copied(
    folder: Path, paths: Sequence[Path], files: Sequence[StoredFile], within: Path | None
) -> Path:
    """Copy `paths`, described by `files`, into the empty `folder`; return it.

    The folder is removed if that fails. Raises InputError if a file changed since it was hashed.
    """
    try:
        for path, stored in zip(paths, files, strict=True):
            hasher = hashlib.sha256()
            with open_plain(path, within) as file, (folder / path.name).open("wb") as copy:
                while chunk := file.read(CHUNK_BYTES):
                    hasher.update(chunk)
                    copy.write(chunk)
            if hasher.hexdigest() != stored.sha256:
                raise InputError(
                    f"{path} changed while it was copied: start again once nothing writes to it"
                )
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def parameters(paths: Sequence[Path]) -> int:
    """Count the stored weights, reading only the safetensors headers."""
    total = 0
    for path in paths:
        if path.suffix == WEIGHTS:
            with open_plain(path, path.parent) as file:
                length = int.from_bytes(file.read(8), "little")
                # A wrong length could claim all memory.
                header = sealed_json.read_unsealed(file.read(min(length, LARGEST_HEADER)))
            total += sum(
                math.prod(entry["shape"])
                for name, entry in header.items()
                if name != "__metadata__"
            )
    return total
