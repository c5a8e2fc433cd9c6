"""What GPUs give, from their makers' data sheets, and what this machine has."""

import os
import re
from typing import Final

from wind.config.models import DType
from wind.errors import ConfigError
from wind.records import Record

GB: Final = 1e9


class Gpu(Record):
    """One model of GPU: dense arithmetic, without sparsity."""

    name: str
    memory: float  # bytes
    bandwidth: float  # bytes per second, of its memory
    bfloat16: float  # FLOP/s of tensor cores
    float32: float  # FLOP/s without TF32, which torch leaves off

    def flops(self, dtype: DType) -> float:
        """Return the peak FLOP/s in `dtype`."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _gpu(name: str, memory: float, bandwidth: float, bfloat16: float, float32: float) -> Gpu:
    """Make a row from GB, GB/s and TFLOP/s."""
    return Gpu(
        name=name,
        memory=memory * GB,
        bandwidth=bandwidth * GB,
        bfloat16=bfloat16 * 1e12,
        float32=float32 * 1e12,
    )


# Data sheets of NVIDIA. A name matches a driver's name that has all of its words; the first counts.
GPUS: Final = (
    _gpu("B200", 180, 7700, 2250, 75),
    _gpu("H200 NVL", 141, 4800, 835, 60),
    _gpu("H200", 141, 4800, 989, 67),
    _gpu("H100 NVL", 94, 3900, 835, 60),
    _gpu("H100 PCIe", 80, 2000, 756, 51),
    _gpu("H100", 80, 3350, 989, 67),
    _gpu("A100 40GB", 40, 1555, 312, 19.5),
    _gpu("A100", 80, 2039, 312, 19.5),
    _gpu("L40S", 48, 864, 362, 91.6),
    _gpu("L4", 24, 300, 121, 30.3),
    _gpu("A10G", 24, 600, 70, 35),
    _gpu("A10", 24, 600, 125, 31.2),
    _gpu("RTX PRO 6000", 96, 1792, 503, 125),
    _gpu("RTX 6000 Ada", 48, 960, 364, 91.1),
    _gpu("RTX A6000", 48, 768, 155, 38.7),
    _gpu("RTX 5090", 32, 1792, 210, 105),
    _gpu("RTX 4090", 24, 1008, 165, 82.6),
    _gpu("RTX 3090", 24, 936, 71, 35.6),
)


def gpu_named(name: str) -> Gpu:
    """Return the row of a GPU by its name, the driver's or a short one.

    Raises ConfigError, which lists the names there are.
    """
    words = _words(name)
    for gpu in GPUS:
        if _words(gpu.name) <= words:
            return gpu
    raise ConfigError(
        f"no GPU called {name!r} is known to plans: they are {', '.join(row.name for row in GPUS)}"
    )


def memory_bytes() -> float:
    """Return this machine's memory in bytes."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))
