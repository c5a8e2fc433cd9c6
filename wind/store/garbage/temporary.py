"""Temporary files and folders: whose they are, and which are left behind."""

import os
import re

from wind.files import writer_of

SCRATCH = re.compile(r"scratch-(\d+)-.*")


def process_of(name: str) -> int | None:
    """Return the process id in a temporary name; None for others."""
    match = SCRATCH.fullmatch(name)
    return int(match[1]) if match else writer_of(name)


def is_left_behind(name: str) -> bool:
    """Return whether `name` is temporary and its process has ended."""
    writer = process_of(name)
    if writer is None:
        return False
    try:
        os.kill(writer, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
