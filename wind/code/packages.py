"""The packages whose versions can change a result."""

from functools import cache
from importlib import metadata
from itertools import chain
from typing import Final

from wind.config.sampling import SAMPLER_PACKAGES

PACKAGES: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    *chain.from_iterable(SAMPLER_PACKAGES.values()),
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
