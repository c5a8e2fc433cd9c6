"""Where the user's own modules are: the current folder and what PYTHONPATH names.

These folders come last, behind Python's own modules, installed packages and this project, and are
on the import path only in a process that imports the user's code: a `random.py` or `tasks/` among
somebody's files must stand for no module of others.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# the user's PYTHONPATH in a process of ours, whose own PYTHONPATH names this project
VARIABLE: Final = "WIND_PYTHONPATH"


def user_path() -> list[str]:
    """The folders to look for the user's modules in, absolute, the current one first."""
    folders = [os.getcwd(), *filter(None, user_pythonpath().split(os.pathsep))]
    return list(dict.fromkeys(folders))


def user_pythonpath() -> str:
    """What PYTHONPATH was when the command was given, its folders absolute."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    given = os.environ.get("PYTHONPATH", "")
    return (
        os.pathsep.join(os.path.abspath(folder) for folder in given.split(os.pathsep))
        if given
        else ""
    )


def state_folder() -> Path | None:
    """The folder for what this user keeps outside of every store; None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "wind"
    return None


@contextmanager
def from_source() -> Iterator[None]:
    """For the block, have modules compiled from their sources: bytecode beside one may be of what
    it was before an edit.
    """
    before = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = os.path.join(os.devnull, "none"), True
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = before


def use_user_path() -> None:
    """Let this process import the user's modules from now on, where no other has the name."""
    sys.path += [folder for folder in user_path() if folder not in sys.path]
