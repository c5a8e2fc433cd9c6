"""Memory that runs out, and how much of it the weights of a model need."""

import gc
from pathlib import Path
from typing import Final

import torch

from wind.models.pretrained import read_json

# how torch's allocator for CPUs begins to say so: it has no exception of its own
CPU_ALLOCATOR: Final = "DefaultCPUAllocator: "
# the share of a device's memory that weights leave to what is computed
WORKING_SHARE: Final = 0.25
BYTES: Final = {"float32": 4, "bfloat16": 2}


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` says that memory ran out, on a GPU or in an allocation on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    )


def release() -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def weight_bytes(folder: Path, dtype: str) -> int:
    """Return how many bytes the weights in `folder` take in `dtype`.

    Files are headers and numbers; they are taken to hold numbers of the size that the config names,
    else of four bytes.
    """
    config = read_json(folder / "config.json")
    fields = config if isinstance(config, dict) else {}
    stored = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return size * BYTES[dtype] // BYTES.get(str(stored), 2)


def has_room(device: str, needed: int) -> bool:
    """Return True if weights of `needed` bytes fit on a CUDA `device` and leave room to work."""
    free, total = torch.cuda.mem_get_info(device)
    # what torch has reserved and holds nothing is free to it
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed <= free - WORKING_SHARE * total
