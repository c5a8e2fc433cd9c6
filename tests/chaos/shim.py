"""The preloaded library of faults.c: built, and told through a small file that all processes of a
run map.
"""

import ctypes
import mmap
import subprocess
from enum import IntEnum
from pathlib import Path

PATH_MAX = 4096


class Operation(IntEnum):
    READ = 0
    WRITE = 1
    MAKE = 2
    NAME = 3
    SYNC = 4


class Role(IntEnum):
    PARENT = 0
    WORKER = 1
    RANK = 2


class Action(IntEnum):
    NOTHING = 0
    FAIL = 1
    TEAR = 2
    SIGNAL_SELF = 3
    SIGNAL_PARENT = 4
    MOVE_CLOCK = 5


class Lasts(IntEnum):
    ONCE = 0
    ALWAYS = 1
    SAME_FILE = 2


class Layout(ctypes.Structure):
    """`struct control` of faults.c."""

    _fields_ = (
        ("active", ctypes.c_uint32),
        ("operations", ctypes.c_uint32),
        ("roles", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("lasts", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("signal", ctypes.c_int32),
        ("parent", ctypes.c_int32),
        ("at", ctypes.c_uint64),
        ("seconds", ctypes.c_int64),
        ("met", ctypes.c_uint64),
        ("counts", ctypes.c_uint64 * len(Operation) * len(Role)),
        ("fired", ctypes.c_uint32),
        ("victim", ctypes.c_int32),
        ("root", ctypes.c_char * PATH_MAX),
        ("among", ctypes.c_char * 256),
        ("place", ctypes.c_char * PATH_MAX),
    )


Counts = dict[Role, dict[Operation, int]]


class Shim:
    """The library and its control file in `folder`; one fault at a time."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "faults.so"
        self.control = folder / "control"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(
            ["gcc", "-O2", "-shared", "-fPIC", "-o", self.library, source, "-ldl"], check=True
        )
        self.control.write_bytes(bytes(ctypes.sizeof(Layout)))
        with self.control.open("rb+") as file:
            self._layout = Layout.from_buffer(mmap.mmap(file.fileno(), 0))

    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to be reached."""
        return {"LD_PRELOAD": str(self.library), "CHAOS_CONTROL": str(self.control)}

    def arm(
        self,
        root: Path,
        action: Action = Action.NOTHING,
        at: int = 0,
        operations: frozenset[Operation] = frozenset(Operation),
        roles: frozenset[Role] = frozenset(Role),
        *,
        error: int = 0,
        signal: int = 0,
        lasts: Lasts = Lasts.ONCE,
        seconds: int = 0,
        among: str = "",
    ) -> None:
        """From now on count what is done below `root`; the operation number `at` of those named
        gets the action.
        """
        self.disarm()
        ctypes.memset(ctypes.addressof(self._layout), 0, ctypes.sizeof(Layout))
        self._layout.action, self._layout.at = action, at
        self._layout.operations = sum(1 << each for each in operations)
        self._layout.roles = sum(1 << each for each in roles)
        self._layout.error, self._layout.signal, self._layout.lasts, self._layout.seconds = (
            error,
            signal,
            lasts,
            seconds,
        )
        self._layout.root, self._layout.among = str(root.resolve()).encode(), among.encode()
        self._layout.active = 1

    def aim(self, parent: int) -> None:
        """Name the process that SIGNAL_PARENT is for."""
        self._layout.parent = parent

    def disarm(self) -> None:
        """Let everything be as it is without the library."""
        self._layout.active = 0

    def fired(self) -> str | None:
        """The file on whose operation the fault came, None if it did not come."""
        return self._layout.place.decode(errors="replace") if self._layout.fired else None

    def counts(self) -> Counts:
        """How many operations of each kind the processes of each role made since `arm`."""
        return {
            role: {each: int(self._layout.counts[role][each]) for each in Operation}
            for role in Role
        }
