"""Provenance: where, when and by what a dataset was computed.

It is stored beside the content, outside its fingerprint. What many datasets share is stored once
under its digest, which their manifests name: the environment of the computing processes as
`<root>/environments/<digest>.json`, and uncommitted changes of this source tree as
`<root>/patches/<digest>.patch`.
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
# Variables whose presence can change the result or speed of a computation.
VARIABLES = re.compile(
    r"^(WIND|HF|TRANSFORMERS|TORCH|PYTORCH|PYTHON|CUDA|CUBLAS|NVIDIA|NCCL|GLOO|OMP|MKL|OPENBLAS|KMP"
    r"|DS|VLLM|TOKENIZERS|PREFECT|AWS|WANDB)(_|[A-Z]*$)"
)
# Taken now: libraries set others while they compute.
STARTED_WITH = sorted(name for name in os.environ if VARIABLES.match(name))
MOST_PATCH_BYTES = 2**20
TREE = Path(__file__).resolve().parents[2]


def provenance(
    store: Store,
    started: float,
    peak_memory_bytes: int | None = None,
    environments: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe where, when and by what a computation ending now was done.

    Returns its times, host, peak memory, git state, packages and environments.

    Args:
        store: where its environment and patch are kept.
        started: when it began, in Unix seconds, as all times are.
        peak_memory_bytes: of the process that did the work; None for this one.
        environments: digests of those of the processes that did the work; empty for this one.
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
    """Return the environment and patch files that a record's `provenance` names.

    There are none if it is malformed.
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
    """Return the digest that must name the environment or patch file `name`.

    It is empty for content that is neither.
    """
    if name.startswith(f"{PATCHES}/"):
        return hashlib.sha256(content).hexdigest()
    try:
        return digest(sealed_json.read_unsealed(content))
    except ValueError:
        return ""


def environment(store: Store) -> str:
    """Store this process's environment and return its digest.

    The environment lists packages, Python, machine and variables.
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
    """Describe this source tree's revision and changes; empty outside a checkout.

    The changes are stored as a patch, whose digest is `git_patch`. If they are larger than a
    megabyte, `git_patch_bytes` is their size instead. `git_patch_redacted` means that a secret was
    removed from the patch, which then may not apply.
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
    """Return this machine's NVIDIA GPU models, as the driver names them."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found


@cache
def _git() -> Changes | None:
    """Return this source tree's commit and changes; None outside a checkout."""
    return changes(TREE, Path(__file__), MOST_PATCH_BYTES)


def peak_memory() -> int:
    """Return the peak resident size of this process since `reset_peak_memory`, in bytes.

    0 where the system does not report it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def reset_peak_memory() -> None:
    """Restart the measurement of `peak_memory`, where supported: a worker runs many stages."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
