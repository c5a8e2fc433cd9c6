"""What a user reads where vLLM's engine does not start: the model is blamed for its own faults
only.
"""

import json
import sys
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest

from wind.config.models import InferenceConfig
from wind.config.sampling import SamplingConfig
from wind.errors import InputError, StageError, WindError
from wind.generations import GenerationsSpec, vllm
from wind.store.handles import Dataset, Model

SPEC = GenerationsSpec(
    policy=Model(fingerprint="0" * 64, parameters=1),
    prompts=Dataset(name="prompts", fingerprint="0" * 64, rows=5),
    split="train",
    sampling=SamplingConfig(backend="vllm"),
    inference=InferenceConfig(),
    seed=0,
    iteration=1,
)


def started(monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception) -> None:
    """Start an engine that fails with `error`."""

    def fail(**settings: Any) -> None:
        raise error

    for name in vllm.ENVIRONMENT:
        # `load` sets what is missing, for the life of a worker
        monkeypatch.setenv(name, "as it was")
    registry = SimpleNamespace(models={})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=fail, ModelRegistry=registry))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    vllm.load(folder, SPEC, 64, "cuda")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (  # FlashInfer without a toolkit
            RuntimeError(
                "Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"
            ),
            StageError,
            "there is no nvcc: install the CUDA toolkit and set CUDA_HOME to its folder",
        ),
        (  # FlashInfer with one that was removed, as its build says
            RuntimeError(
                "Ninja build failed. Ninja output:\n/bin/sh: 1: /usr/local/cuda/bin/nvcc: not "
                "found\nninja: build stopped"
            ),
            StageError,
            "there is no nvcc: install",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "ninja"),
            StageError,
            "there is no ninja: install ninja beside the interpreter of the worker",
        ),
        (
            RuntimeError(
                "InductorError: RuntimeError: Failed to find C compiler. Please specify via CC "
                "environment variable"
            ),
            StageError,
            "there is no C compiler: install gcc, or set CC",
        ),
        (
            CalledProcessError(1, ["/usr/bin/gcc", "cuda_utils.c"]),
            StageError,
            "could not compile a kernel: Command '['/usr/bin/gcc', 'cuda_utils.c']' returned "
            "non-zero exit status 1.;",
        ),
        (  # everything was there, and the model does not fit the engine
            RuntimeError(
                "Ninja build failed. Ninja output:\nerror: static assertion failed: "
                "head_dim\nninja: build stopped"
            ),
            InputError,
            "does not load in vLLM: Ninja build failed. Ninja output:",
        ),
        (
            ValueError("No supported architecture: NinjaForCausalLM"),
            InputError,
            "does not load in vLLM: No supported architecture",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "model.safetensors"),
            InputError,
            "does not load in vLLM",
        ),
    ],
)
def test_a_failed_start_says_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    kind: type[WindError],
    message: str,
) -> None:
    with pytest.raises(kind) as caught:
        started(monkeypatch, tmp_path, error)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
