"""From trained weights to a model folder, and the proof that the folder holds what was trained.

The folder is the start policy's with other weights: tokenizer, chat template and generation config
are copied byte for byte, the config but for its data type. It is verified by the process that
publishes it, after the engine is gone: reloaded, it must have the shapes of the start policy and
give the probe the log-probabilities that the engine gave.
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
from wind.store.datasets import MANIFEST, MODEL_FILES
from wind.training.batches import Rows, micro_batch
from wind.training.policies import declared_shapes, load_policy

EXPORT: Final = "export"  # the folder inside the work folder
ADAPTER: Final = "adapter"  # beside it, the adapter alone
# Relative to max(1, |logp|). bfloat16 kernels may round another way; merging an adapter rounds the
# weights (1e-2 was measured).
TOLERANCE: Final = {"float32": 1e-4, "bfloat16": 5e-2}


def probe_logps(model: torch.nn.Module, rows: Rows, groups: int, device: str) -> list[float]:
    """The log-probabilities of the first `groups` groups under a `SequenceLogps`; collective under
    ZeRO-3.
    """
    batch = micro_batch(rows, np.arange(min(groups, rows.groups)), device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(*batch.inputs)
    # the intercept is no part of the policy
    logps_B = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    model.train(was_training)
    values: list[float] = logps_B.tolist()
    return values


def save_policy(
    model: Any, weights: dict[str, torch.Tensor], start: Path, work: Path, training: TrainingConfig
) -> None:
    """Write the trained policy to `work`/export; where adapters were trained, merged, and the
    adapter alone to `work`/adapter.
    """
    if training.lora:
        from wind.training.lora import merged_weights, save_adapter

        save_adapter(model, weights, f"models/{start.name}", work / ADAPTER)
        weights = merged_weights(model, weights)
    save_weights(model, weights, start, work / EXPORT, training.precision)


def save_weights(
    model: Any, weights: dict[str, torch.Tensor], start: Path, folder: Path, precision: str
) -> None:
    """Write the model folder: `weights` as safetensors under the names of `model`, everything else
    from the folder `start`.
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
    config.pop("torch_dtype", None)  # the older name of the same key
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
    """Raise TrainingError unless `folder` reloads with the shapes of `start` and gives the probe
    the logps `trained`.
    """
    try:
        model = load_policy(folder, precision)
    except InputError as error:
        raise TrainingError(f"the exported model cannot be used: {error}") from error
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if shapes != (expected := declared_shapes(start)):
        other = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise TrainingError(
            f"the exported model differs from its start in {len(other)} shapes, such as that of {other[0]}"
        )
    reloaded = np.array(probe_logps(SequenceLogps(model.to(device)), rows, groups, device))
    difference = np.abs(reloaded - trained) / np.maximum(1, np.abs(trained))
    if not difference.max() <= TOLERANCE[precision]:
        raise TrainingError(
            f"the exported model is not the trained one: log-probabilities of a probe differ by {difference.max():.3g} relative, "
            f"and {TOLERANCE[precision]:g} is allowed"
        )


def _holds_weights(path: Path) -> bool:
    return path.name.startswith("model") and (
        path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
    )
