"""The GPUs that CUDA offers us: how many, their names, their memory.

This asks the CUDA driver itself, since nothing else knows everything that decides:
CUDA_VISIBLE_DEVICES by number or UUID, slices of a GPU (MIG), containers, WSL. It asks in a
separate process, `python -m wind.machine.devices`: a process that has asked can no longer be forked
to use CUDA.
"""

import ctypes
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from subprocess import SubprocessError
from typing import Any, Final

from wind.errors import ConfigError, first_line
from wind.machine import processes
from wind.machine.terminal import say_json

DRIVER: Final = "libcuda.so.1"
NO_GPU: Final = (34, 100)  # CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_NO_DEVICE
NAME_BYTES: Final = 256
# a driver that is not kept loaded takes several seconds for each GPU
SECONDS: Final = 120.0
# suffix of the version of a torch without CUDA
CPU_BUILD: Final = "+cpu"


@dataclass(frozen=True)
class Driver:
    """The answer of the CUDA driver; all is empty if there is none."""

    names: tuple[str, ...] = ()
    memory: tuple[int, ...] = ()  # bytes of each GPU
    cuda: str = ""  # the newest CUDA that it runs, such as 13.0


def gpus() -> tuple[str, ...]:
    """Return the names of the GPUs, in CUDA's order.

    Empty if there is no driver. Raises ConfigError if the driver does not start.
    """
    return _answer(os.environ.get("CUDA_VISIBLE_DEVICES")).names


def driver() -> "Driver":
    """Return what the CUDA driver says of itself and its GPUs.

    Raises ConfigError if the driver does not start.
    """
    return _answer(os.environ.get("CUDA_VISIBLE_DEVICES"))


def cpu_build() -> str | None:
    """Return this interpreter's torch, as "torch 2.13.0+cpu", if it lacks CUDA."""
    found = version("torch")
    return f"torch {found}" if found.endswith(CPU_BUILD) else None


def listed(names: Sequence[str]) -> str:
    """Summarize GPUs in a few words: "8 x NVIDIA H200"."""
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).items())


@cache
def _answer(visible: str | None) -> Driver:
    """Ask the driver for the GPUs when CUDA_VISIBLE_DEVICES is `visible`."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return Driver()
    command = processes.python("-m", "wind.machine.devices")
    try:
        said = json.loads(
            processes.run(command, env=processes.environment(), timeout=SECONDS).stdout
        )
    except (SubprocessError, ValueError) as error:
        said = {"error": f"no answer, {first_line(error)}"}
    if "error" in said:
        raise ConfigError(
            f"the CUDA driver does not start: {said['error']}; "
            "check that nvidia-smi works, or set workers.device to cpu"
        )
    return Driver(tuple(said["names"]), tuple(said["memory"]), said["cuda"])


def main() -> None:
    """Print the GPUs and the driver's version as JSON, or its error."""
    cuda = ctypes.CDLL(DRIVER)
    code = cuda.cuInit(0)
    if code not in (0, *NO_GPU):
        say_json({"error": _name_of_error(cuda, code)})
        return
    found = [] if code else _gpus(cuda)
    names, memory = [name for name, _ in found], [size for _, size in found]
    say_json({"names": names, "memory": memory, "cuda": _version(cuda)})


def _gpus(cuda: Any) -> list[tuple[str, int]]:
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES)
        size = ctypes.c_size_t()
        cuda.cuDeviceGet(ctypes.byref(device), number)
        cuda.cuDeviceGetName(name, NAME_BYTES, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        found.append((name.value.decode(errors="replace"), size.value))
    return found


def _version(cuda: Any) -> str:
    """Return the newest CUDA that the driver runs; it says 12080 for 12.8."""
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _name_of_error(cuda: Any, code: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    return f"{(name.value or b'error').decode()} ({code})"


if __name__ == "__main__":
    main()
