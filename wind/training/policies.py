"""The policy as a module to train: loaded from its folder, dropout off, nothing made up."""

from pathlib import Path
from typing import Any

import torch

from wind.config.models import Attention
from wind.errors import InputError
from wind.models import attention_of, pretrained


def load_policy(folder: Path, precision: str, attention: Attention = "auto") -> torch.nn.Module:
    """The causal language model in `folder`, in eval mode, with gradients; a new one on every call.

    Every dropout is off, so that training starts at the recorded log-probabilities. Raises
    InputError if the folder does not load or lacks weights.
    """
    model, loading = pretrained.load_model(
        "AutoModelForCausalLM",
        folder,
        str(folder),
        config=_config(folder),
        dtype=getattr(torch, precision),
        attn_implementation=attention_of(folder, attention),
    )
    if wrong := sorted(
        str(name) for kind in ("missing_keys", "mismatched_keys") for name in loading[kind]
    ):
        raise InputError(
            f"{folder} does not fit its config: {len(wrong)} missing or misshapen weights, such as {wrong[0]}"
        )
    policy: torch.nn.Module = model.eval()
    return policy


def declared_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter that the config in `folder` declares; no weight is read."""
    with torch.device("meta"):
        model = pretrained.model_without_weights(_config(folder))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _config(folder: Path) -> Any:
    config = pretrained.load_config(folder)
    _switch_dropout_off(config)
    return config


def _switch_dropout_off(config: Any) -> None:
    """Set every dropout probability of a transformers config, and of the configs inside it, to
    zero.
    """
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            _switch_dropout_off(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
