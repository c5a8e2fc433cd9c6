"""Set environment variables, fix those of numerics, and bypass proxies."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

# read when the first CUDA context is made
CUBLAS: Final = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Variables that influence how floats are computed, set to the same values in every process that
# computes a stage; None means unset. The number of threads changes floats: each process computes
# with one thread, and more cores are used by more processes.
BUILT: Final[Mapping[str, str | None]] = {
    **dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "BLIS_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS",
            "NUMEXPR_NUM_THREADS",
            "NUMBA_NUM_THREADS",
        ),
        "1",
    ),
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
    CUBLAS[0]: CUBLAS[1],
    **dict.fromkeys(
        (
            "GOTO_NUM_THREADS",
            "MKL_DOMAIN_NUM_THREADS",
            "MKL_CBWR",
            "MKL_ENABLE_INSTRUCTIONS",
            "MKL_DEBUG_CPU_TYPE",
            "MKL_THREADING_LAYER",
            "MKL_INTERFACE_LAYER",
            "OMP_SCHEDULE",
            "OMP_THREAD_LIMIT",
            "OMP_MAX_ACTIVE_LEVELS",
            "OMP_NESTED",
            "OMP_PROC_BIND",
            "OMP_PLACES",
            "KMP_SETTINGS",
            "KMP_AFFINITY",
            "KMP_DETERMINISTIC_REDUCTION",
            "OPENBLAS_CORETYPE",
            "OPENBLAS_VERBOSE",
            "NPY_DISABLE_CPU_FEATURES",
            "NPY_ENABLE_CPU_FEATURES",
            "ATEN_CPU_CAPABILITY",
            "DNNL_MAX_CPU_ISA",
            "DNNL_DEFAULT_FPMATH_MODE",
            "ONEDNN_MAX_CPU_ISA",
            "ONEDNN_DEFAULT_FPMATH_MODE",
            "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
            "NVIDIA_TF32_OVERRIDE",
            "TORCH_LINALG_PREFER_CUSOLVER",
            "TORCH_CUDNN_V8_API_DISABLED",
            "CUDNN_CONV_WSCAP_DBG",
            "TORCHDYNAMO_DISABLE",
            "PYTORCH_JIT",
            "PYTORCH_NVFUSER_DISABLE",
            "PYTHONOPTIMIZE",
        )
    ),
    # a user's function may sum over a set
    "PYTHONHASHSEED": "0",
}
# Variables that tell a worker where it is and what it computes on, whatever the user has set.
PLACED: Final = (
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "GLOO_SOCKET_IFNAME",
    "HF_HUB_OFFLINE",
    "NCCL_SOCKET_IFNAME",
    "PATH",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "TOKENIZERS_PARALLELISM",
)

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
# libraries read one or the other, or the first that is set
NO_PROXY: Final = ("NO_PROXY", "no_proxy")


def built(variables: Mapping[str, str]) -> dict[str, str]:
    """Return `variables` with those that influence floats fixed."""
    kept = {name: value for name, value in variables.items() if name not in BUILT}
    return kept | {name: value for name, value in BUILT.items() if value is not None}


def direct() -> dict[str, str]:
    """Return variables that exempt this machine from the environment's proxies.

    Empty if no proxy is set.
    """
    if not any(name.lower().endswith("_proxy") and value for name, value in os.environ.items()):
        return {}
    given = [host.strip() for name in NO_PROXY for host in os.environ.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys(filter(None, [*given, *LOOPBACK])))
    return dict.fromkeys(NO_PROXY, hosts)


def unset(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the `wanted` variables that the environment lacks."""
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def variables(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for the block, and restore them afterwards.

    The value None unsets a variable.
    """
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
