"""Where, when and by what a dataset was computed: kept beside its content, never part of its
fingerprint.

What many datasets share is stored once, named by its content, and every manifest names its digest:
the environment of the processes that computed as `<root>/environments/<digest>.json`, and
uncommitted changes of this source tree as `<root>/patches/<digest>.patch`.
"""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wind.code.packages import packages
from wind.fingerprints import digest
from wind.redaction import redacted
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.git import Changes, changes
from wind.store.handles import FINGERPRINT

ENVIRONMENTS, PATCHES = "environments", "patches"  # folders
VARIABLES = re.compile(  # whose presence can change what or how fast something computes
    r"^(WIND|HF|TRANSFORMERS|TORCH|PYTORCH|PYTHON|CUDA|CUBLAS|NVIDIA|NCCL|GLOO|OMP|MKL|OPENBLAS|KMP|DS|VLLM|TOKENIZERS|PREFECT|AWS|WANDB)(_|[A-Z]*$)"
)
# libraries set others while they compute
STARTED_WITH = sorted(name for name in os.environ if VARIABLES.match(name))
MOST_PATCH_BYTES = 2**20
TREE = Path(__file__).resolve().parents[2]


def provenance(
    store: Store,
    started: float,
    peak_memory_bytes: int | None = None,
    environments: Sequence[str] = (),
) -> dict[str, Any]:
    """Times (Unix seconds), host, peak memory, git state, packages and environments of a
    computation begun at `started`.

    `peak_memory_bytes` and `environments` are those of the processes that did the work, where it
    was not this one.
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
        "environments": sorted(set(environments)) or [environment(store)],
        **git_state(store),
    }


def described_by(provenance: Any) -> list[str]:
    """The stored files that a record's `provenance` names: of environments, and of a patch; none if
    it is not what we wrote.
    """
    if not isinstance(provenance, dict):
        return []
    environments, patch = provenance.get("environments"), provenance.get("git_patch")
    names = [
        (each, f"{ENVIRONMENTS}/{each}.json")
        for each in (environments if isinstance(environments, list) else [])
    ]
    return [
        name
        for each, name in [*names, (patch, f"{PATCHES}/{patch}.patch")]
        if FINGERPRINT.fullmatch(str(each))
    ]


def description_digest(name: str, content: bytes) -> str:
    """The digest that the file `name` of an environment or a patch must be called by; empty for
    what is neither.
    """
    if name.startswith(f"{PATCHES}/"):
        return hashlib.sha256(content).hexdigest()
    try:
        return digest(sealed_json.read_unsealed(content))
    except ValueError:
        return ""


def environment(store: Store) -> str:
    """The digest of this process's environment, after it was stored under that name: packages,
    Python, machine, variables.
    """
    found = _environment()
    name = digest(found)
    _keep(
        store,
        f"{ENVIRONMENTS}/{name}.json",
        json.dumps(found, indent=1, ensure_ascii=False).encode(),
    )
    return name


def git_state(store: Store) -> dict[str, Any]:
    """The revision of this source tree, and whether it has uncommitted changes; empty outside a
    checkout.

    The changes are stored as a patch and named as `git_patch`, unless they are larger than a
    megabyte: then `git_patch_bytes` is their size. `git_patch_redacted` says that a secret was
    taken out of the patch, and that it may not apply.
    """
    found = _git()
    if found is None:
        return {}
    state: dict[str, Any] = {"git_revision": found.revision, "git_dirty": found.size != 0}
    if not found.size:
        return state
    if found.patch is None:
        return {**state, "git_patch_bytes": found.size}
    clean = redacted(found.patch.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    name = hashlib.sha256(clean).hexdigest()
    _keep(store, f"{PATCHES}/{name}.patch", clean)
    return {
        **state,
        "git_patch": name,
        **({"git_patch_redacted": True} if clean != found.patch else {}),
    }


def _keep(store: Store, name: str, content: bytes) -> None:
    if store.storage.size(name) is None:
        store.storage.write(name, content)


@cache
def _environment() -> dict[str, Any]:
    installed = {
        f"{found.name}=={found.version}" for found in metadata.distributions() if found.name
    }
    return {
        "packages": sorted(installed, key=str.lower),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "variables": STARTED_WITH,  # names only: values may be secrets
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _gpus() -> list[str]:
    """The models of NVIDIA GPUs in this machine, as the driver names them."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found


@cache
def _git() -> Changes | None:
    """What of this source tree is not in its commit; None outside a checkout."""
    return changes(TREE, Path(__file__), MOST_PATCH_BYTES)


def peak_memory() -> int:
    """The largest resident size of this process since `reset_peak_memory`, in bytes; 0 where the
    system does not tell.
    """
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
