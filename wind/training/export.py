"""Export trained weights as a model folder, and verify what it holds.

The folder is the starting policy's with other weights: tokenizer, chat template and generation
config are copied byte for byte, and so is the config except for its data type. The publishing
process verifies it after the engine is gone: once reloaded, it must have the shapes of the starting
policy and reproduce the engine's log-probabilities of a probe.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from wind.config.training import TrainingConfig
from wind.errors import InputError, TrainingError
from wind.files import atomic_write
from wind.models.sequence_logps import SequenceLogps
from wind.nesting import json_value
from wind.store.layout import MANIFEST, MODEL_FILES
from wind.training.batches import Rows, micro_batch
from wind.training.policies import declared_shapes, load_policy

# folder inside the work folder
EXPORT: Final = "export"
# folder beside it that holds only the adapter
ADAPTER: Final = "adapter"
# Relative to max(1, |logp|). bfloat16 kernels may round differently; merging an adapter rounds the
# weights (1e-2 was measured).
TOLERANCE: Final = {"float32": 1e-4, "bfloat16": 5e-2}


def probe_logps(model: torch.nn.Module, rows: Rows, groups: int, device: str) -> list[float]:
    """Return the log-probabilities of the first `groups` groups under `model`.

    `model` is a `SequenceLogps`. Collective under ZeRO-3.
    """
    batch = micro_batch(rows, np.arange(min(groups, rows.groups)), device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(*batch.inputs)
    # the intercept is not part of the policy
    logps_B = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    model.train(was_training)
    values: list[float] = logps_B.tolist()
    return values


def save_policy(
    model: Any, weights: dict[str, torch.Tensor], start: Path, work: Path, training: TrainingConfig
) -> None:
    """Write the trained policy to `work`/export.

    Adapters are merged into it, and saved by themselves to `work`/adapter.
    """
    if training.lora:
        from wind.training.lora import merged_weights, save_adapter

        save_adapter(model, weights, f"models/{start.name}", work / ADAPTER)
        weights = merged_weights(model, weights)
    save_weights(model, weights, start, work / EXPORT, training.precision)


def save_weights(
    model: Any, weights: dict[str, torch.Tensor], start: Path, folder: Path, precision: str
) -> None:
    """Write a model folder that differs from `start` only in its weights.

    `weights` are saved as safetensors under the names of `model`; all other files come from
    `start`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, state_dict=weights)
    for path in folder.iterdir():
        if not _holds_weights(path):
            path.unlink()
    for path in start.iterdir():
        if MODEL_FILES.fullmatch(path.name) and path.name != MANIFEST and not _holds_weights(path):
            shutil.copyfile(path, folder / path.name)
    config = json_value((start / "config.json").read_bytes())
    # older name of the same key
    config.pop("torch_dtype", None)
    atomic_write(
        folder / "config.json", json.dumps({**config, "dtype": precision}, indent=2).encode()
    )


def verify_export(
    folder: Path,
    start: Path,
    rows: Rows,
    groups: int,
    trained: list[float],
    precision: str,
    device: str,
) -> None:
    """Raise TrainingError unless `folder` holds the trained model.

    Reloaded, it must have the shapes of `start` and give the probe, the first `groups` groups of
    `rows`, the log-probabilities `trained`.
    """
    try:
        model = load_policy(folder, precision)
    except InputError as error:
        raise TrainingError(f"the exported model cannot be used: {error}") from error
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if shapes != (expected := declared_shapes(start)):
        other = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise TrainingError(
            f"the exported model differs from its start in {len(other)} shapes, "
            f"such as that of {other[0]}"
        )
    reloaded = np.array(probe_logps(SequenceLogps(model.to(device)), rows, groups, device))
    difference = np.abs(reloaded - trained) / np.maximum(1, np.abs(trained))
    if not difference.max() <= TOLERANCE[precision]:
        raise TrainingError(
            "the exported model is not the trained one: log-probabilities of a probe differ by "
            f"{difference.max():.3g} relative, and {TOLERANCE[precision]:g} is allowed"
        )


def _holds_weights(path: Path) -> bool:
    return path.name.startswith("model") and (
        path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
    )
