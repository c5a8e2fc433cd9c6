"""The user's own modules: the current folder and the folders in PYTHONPATH.

These folders come last, after Python's own modules, installed packages and this project, and are on
the import path only in a process that imports the user's code: a user's `random.py` or `tasks/`
must not replace anybody else's module.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# holds the user's PYTHONPATH in our processes, whose own PYTHONPATH names this project
VARIABLE: Final = "WIND_PYTHONPATH"


def user_path() -> list[str]:
    """Return the absolute folders of the user's modules, the current one first."""
    folders = [os.getcwd(), *filter(None, user_pythonpath().split(os.pathsep))]
    return list(dict.fromkeys(folders))


def user_pythonpath() -> str:
    """Return the user's original PYTHONPATH, with absolute folders."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    given = os.environ.get("PYTHONPATH", "")
    return (
        os.pathsep.join(os.path.abspath(folder) for folder in given.split(os.pathsep))
        if given
        else ""
    )


def state_folder() -> Path | None:
    """Return the folder for this user's state outside of every store.

    None for a user without a home.
    """
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "wind"
    return None


@contextmanager
def from_source() -> Iterator[None]:
    """Compile modules from their sources within the block.

    Bytecode may be older than an edit of its source.
    """
    before = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = os.path.join(os.devnull, "none"), True
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = before


def use_user_path() -> None:
    """Let this process import the user's modules from now on.

    Modules of other origin with the same name win.
    """
    sys.path += [folder for folder in user_path() if folder not in sys.path]
