"""Low-rank adapters (LoRA, arXiv 2106.09685).

A layer's weight W is frozen, and A and B of W + (alpha/rank) B A are trained. B starts at zero, so
that training starts at the recorded log-probabilities. The adapters are injected into the policy's
own modules: to objectives, loop and ZeRO it is a policy with few trained weights. The published
model is the policy with the products added to its weights, a model folder like any other, and
beside it the adapter alone, as `peft` reads it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import transpose
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from wind.config.training import LoraConfig
from wind.errors import ConfigError
from wind.files import atomic_write

# of the one adapter, inside the names of its weights
NAME: Final = "default"
# peft's word for every linear layer but the head
ALL: Final = "all-linear"


def add_adapters(model: Any, lora: LoraConfig, seed: int) -> None:
    """Freeze `model` and add adapters to its target layers.

    A is drawn from `seed` alone and has the layer's data type. Raises ConfigError if the model
    lacks a target module.
    """
    _check_targets(model, lora)
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted(lora.target_modules) or ALL,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, NAME)


@dataclass(frozen=True)
class Update:
    """The update that one layer's adapter adds to its weight."""

    layer: Any

    @property
    def factors(self) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        """B, `[out, rank]`, and A, `[rank, in]`."""
        return self.layer.lora_B[NAME].weight, self.layer.lora_A[NAME].weight

    def of(self, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return (alpha/rank) B A in float32 for factors `b` and `a`.

        It has the layout of the layer's weight.
        """
        product: torch.Tensor = self.layer.scaling[NAME] * transpose(
            b.float() @ a.float(), self.layer.fan_in_fan_out
        )
        return product


def updates(model: Any) -> dict[str, Update]:
    """Map each adapted weight's plain name to the update of its adapter."""
    return {
        f"{name}.weight": Update(module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map plain weight names to those in a policy with adapters.

    `names` are those of a policy with adapters; the adapters' own weights are left out.
    """
    return {name.replace(".base_layer.", "."): name for name in names if not _is_adapter(name)}


def merged_weights(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of the policy with its adapters merged in.

    They are W + (alpha/rank) B A, by plain name; `weights` are those of `model` with adapters. The
    sum is computed in float32 and rounded once to the data type of W.
    """
    merged = {plain: weights[name] for plain, name in plain_names(weights).items()}
    for plain, update in updates(model).items():
        b, a = (
            weights[f"{plain.removesuffix('.weight')}.lora_{letter}.{NAME}.weight"]
            for letter in "BA"
        )
        merged[plain] = (merged[plain].float() + update.of(b, a)).to(merged[plain].dtype)
    return merged


def save_adapter(model: Any, weights: dict[str, torch.Tensor], base: str, folder: Path) -> None:
    """Write the adapter's weights and config to `folder`.

    `peft.PeftModel.from_pretrained` reads them; `base` names the adapted policy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weight
        for name, weight in weights.items()
        if _is_adapter(name)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        **model.peft_config[NAME].to_dict(),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    # The targets are a set, whose order varies between processes.
    atomic_write(
        folder / "adapter_config.json",
        json.dumps(config, indent=2, sort_keys=True, default=sorted).encode(),
    )


def _is_adapter(name: str) -> bool:
    return f".{NAME}.weight" in name and ".lora_" in name


def _check_targets(model: Any, lora: LoraConfig) -> None:
    head = model.get_output_embeddings()
    layers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    if lacking := sorted(set(lora.target_modules) - layers):
        raise ConfigError(
            f"training.lora.target_modules names {lacking[0]}, but the policy has no such linear "
            f"layer (the head has no adapter): name some of {', '.join(sorted(layers))}"
        )
