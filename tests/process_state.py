"""The state of a process that every test finds as the one before it did, and leaves as it was."""

import decimal
import locale
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Set by libraries while they are imported, and by pytest.
OF_LIBRARIES = (
    "CUBLAS_",
    "CUDA_",
    "HF_",
    "KINETO_",
    "KMP_",
    "PYTEST_",
    "PYTORCH_",
    "TILELANG_",
    "TOKENIZERS_",
    "TORCH",
    "TRITON_",
    "VLLM_",
    "_RJEM_",
)
AT_FIRST: dict[str, Any] = {
    "torch dtype": "float32",
    "torch gradients": True,
    "torch deterministic": False,
}  # when torch is imported
# The recursion limit is raised by torch's compiler when it is imported; folders of rewards come
# into the module path to stay.
RESTORED = {"variables", "recursion limit", "module path"}
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGALRM,
    signal.SIGPIPE,
    signal.SIGUSR1,
)


def process_state() -> dict[str, Any]:
    """What code can change for all that runs after it in the same process, by name."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(OF_LIBRARIES)
    }
    return {
        "working folder": _folder(),
        "variables": variables,
        "umask": _umask(),
        "locale": locale.setlocale(locale.LC_ALL),
        "time zone": time.tzname,
        "signal handlers": {each: signal.getsignal(each) for each in SIGNALS},
        "socket timeout": socket.getdefaulttimeout(),
        "decimal precision": decimal.getcontext().prec,
        "numpy errors": np.geterr(),
        "recursion limit": sys.getrecursionlimit(),
        "module path": list(sys.path),
        **_torch(),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What was and what is, by name, of all that differs and that nobody had a right to change."""
    old, new = (AT_FIRST | state | state["variables"] for state in (before, after))
    names = (
        (old.keys() | new.keys())
        - RESTORED
        - ({"torch threads"} if "torch threads" not in old else set())
    )
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(names)
        if old.get(name) != new.get(name)
    }


def restore(state: dict[str, Any]) -> None:
    """Put it all back, so that the fault of one test is not that of the next."""
    os.chdir(state["working folder"])
    for name in process_state()["variables"].keys() - state["variables"].keys():
        del os.environ[name]
    os.environ.update(state["variables"])
    os.umask(int(state["umask"], 8))
    locale.setlocale(locale.LC_ALL, state["locale"])
    time.tzset()
    for each, handler in state["signal handlers"].items():
        if handler is not None:  # one that was not set from Python cannot be
            signal.signal(each, handler)
    socket.setdefaulttimeout(state["socket timeout"])
    decimal.getcontext().prec = state["decimal precision"]
    np.seterr(**state["numpy errors"])
    sys.setrecursionlimit(state["recursion limit"])
    sys.path[:] = state["module path"]
    if "torch" in sys.modules:
        _restore_torch(AT_FIRST | state)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "one that is gone"


def _umask() -> str:
    """The umask, without setting it for a moment, which other threads would meet."""
    status = Path("/proc/self/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:"))


def _torch() -> dict[str, Any]:
    """What torch computes by, if it is imported."""
    if "torch" not in sys.modules:
        return {}
    import torch

    return {
        "torch dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "torch gradients": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch threads": torch.get_num_threads(),
    }


def _restore_torch(state: dict[str, Any]) -> None:
    import torch

    torch.set_default_dtype(getattr(torch, state["torch dtype"]))
    torch.set_grad_enabled(state["torch gradients"])
    torch.use_deterministic_algorithms(state["torch deterministic"])
    torch.set_num_threads(state.get("torch threads", torch.get_num_threads()))
