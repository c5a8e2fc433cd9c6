"""The policy as a module to train: loaded from its folder, dropout off, nothing made up."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from wind.config import Attention
from wind.errors import InputError, first_line
from wind.models import attention_of


def load_policy(folder: Path, precision: str, attention: Attention = "auto") -> torch.nn.Module:
    """The causal language model in `folder`, in eval mode, with gradients; a new one on every call.

    Every dropout is off, so that training starts at the recorded log-probabilities. Raises InputError if the folder does not load
    or lacks weights.
    """
    implementation = attention_of(folder, attention)
    try:
        loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_config(folder),
            dtype=getattr(torch, precision),
            attn_implementation=implementation,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} does not load as a causal language model: {first_line(error)}") from error
    model, loading = loaded
    if wrong := sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in loading[kind]):
        raise InputError(f"{folder} does not fit its config: {len(wrong)} missing or misshapen weights, such as {wrong[0]}")
    policy: torch.nn.Module = model.eval()
    return policy


def declared_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter that the config in `folder` declares; no weight is read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(folder))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _config(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _switch_dropout_off(config)
    return config


def _switch_dropout_off(config: Any) -> None:
    """Set every dropout probability of a transformers config, and of the configs inside it, to zero."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            _switch_dropout_off(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
