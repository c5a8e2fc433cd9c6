"""What comes into the store from outside, or from training: plain files, measured before they are
read, and copies of them.

A file that is none (a FIFO, a device), or a link that leads out of its folder, never enters: see
`wind.files.open_plain`.
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

LARGEST_HEADER: Final = 100_000_000  # bytes of a safetensors header: what the library itself reads


def model_files(folder: Path) -> list[Path]:
    """The files that make up a Hugging Face model: config, tokenizer, templates and safetensors,
    nothing else.

    Raises NotPlainError for one that is no plain file, or a link that leads out of the folder.
    """
    paths = [
        path
        for path in sorted(folder.iterdir())
        if MODEL_FILES.fullmatch(path.name) and path.name != MANIFEST
    ]
    sizes(paths, folder)
    return paths


def sizes(paths: Sequence[Path], within: Path | None) -> dict[str, int]:
    """The size of each file in bytes, by its name. Raises NotPlainError as `open_plain` does."""
    found = {}
    for path in paths:
        with open_plain(path, within) as file:
            found[path.name] = os.fstat(file.fileno()).st_size
    return found


def no_room(paths: Sequence[Path], target: Path, within: Path | None) -> str | None:
    """What is missing for a copy of `paths` in the folder `target`, which need not be there yet;
    None if it has room.

    Sizes are those that the files claim: a sparse one is written out.
    """
    disk = next(
        folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists()
    )
    needed, free = sum(sizes(paths, within).values()), shutil.disk_usage(disk).free
    if needed <= free:
        return None
    return (
        f"a copy of {within or paths[0]} takes {needed} bytes, and {disk} has {free} free: free space, or set `root` to a folder "
        "with more"
    )


def stored_file(path: Path, within: Path | None) -> StoredFile:
    """What a manifest says of the file at `path`."""
    with open_plain(path, within) as file:
        return StoredFile(
            name=path.name, bytes=os.fstat(file.fileno()).st_size, sha256=stream_digest(file)
        )


def copied(
    folder: Path, paths: Sequence[Path], files: Sequence[StoredFile], within: Path | None
) -> Path:
    """The new, empty `folder` with a copy of `paths` in it, which are `files`; it is removed again
    if that fails.

    Raises InputError if one is no longer what was hashed.
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
    """The number of stored weights, read from the safetensors headers alone."""
    total = 0
    for path in paths:
        if path.suffix == WEIGHTS:
            with open_plain(path, path.parent) as file:
                length = int.from_bytes(file.read(8), "little")
                # a wrong length would ask for all memory there is
                header = sealed_json.read_unsealed(file.read(min(length, LARGEST_HEADER)))
            total += sum(
                math.prod(entry["shape"])
                for name, entry in header.items()
                if name != "__metadata__"
            )
    return total
