"""A session of tests in a home and a temporary folder of its own, which leaves nothing: no process,
file or socket.

Every process that a session starts inherits a mark in its environment, so that it is found after
all of its parents have ended, too. What tests write goes to one folder, which is removed with the
session, unless a test failed or something was left.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MARK = "WIND_TEST_SESSION"  # its value is the session's folder
SECONDS_TO_END = 10.0  # of a process that was killed as the session ended
CACHES = {
    ".git",
    ".hypothesis",
    ".import_linter_cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
}


def begin() -> None:
    """Give this process, and all that it starts, the folder, home and temporary folder of a new
    session.
    """
    folder = Path(tempfile.mkdtemp(prefix="wind-"))
    places = {
        "HOME": folder / "home",
        "TMPDIR": folder / "tmp",
        "PYTEST_DEBUG_TEMPROOT": folder / "t",
    }
    # else in the temporary folder, by the name of the user
    places["TORCHINDUCTOR_CACHE_DIR"] = folder / "home" / "inductor"
    for name, place in places.items():
        place.mkdir()
        os.environ[name] = str(place)
    for name in [
        name
        for name in os.environ
        if name.startswith("XDG_") or name in ("HF_HOME", "MPLCONFIGDIR", "WIND_CACHE")
    ]:
        del os.environ[name]
    os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"  # which would ignore that
    os.environ[MARK] = str(folder)
    tempfile.tempdir = None  # which was read from the environment before


def end(*, is_good: bool) -> None:
    """Remove the session's folder, unless something went wrong: then it is kept to be looked at."""
    if is_good:
        shutil.rmtree(os.environ[MARK])


def descendants() -> list[str]:
    """What lives of the processes that this one started, or that they started."""
    return _patiently(
        lambda: [
            _named(process)
            for process in psutil.Process().children(recursive=True)
            if _is_alive(process)
        ]
    )


def marked() -> list[str]:
    """What lives of the processes of this session, whoever their parents are by now, but for this
    one.
    """
    return _patiently(
        lambda: [
            _named(process) for process in psutil.process_iter() if _is_of_this_session(process)
        ]
    )


def files() -> list[str]:
    """What lies in the session's temporary folder, and our own cache in its home: tests have no
    business there.
    """
    folder = Path(os.environ[MARK])
    cache = folder / "home" / ".cache" / "wind"
    return [
        str(path) for path in [*(folder / "tmp").iterdir(), *([cache] if cache.exists() else [])]
    ]


def names(folder: Path) -> set[str]:
    """What lies in `folder`, but for the caches of tools."""
    return set(os.listdir(folder)) - CACHES


def _patiently(find: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + SECONDS_TO_END
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _is_of_this_session(process: psutil.Process) -> bool:
    try:
        return (
            process.pid != os.getpid()
            and process.environ().get(MARK) == os.environ[MARK]
            and _is_alive(process)
        )
    except psutil.Error:
        return False


def _named(process: psutil.Process) -> str:
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"process {process.pid}"
