"""Load a policy for training: dropout off, no missing weights."""

from pathlib import Path
from typing import Any

import torch

from wind.config.models import Attention
from wind.errors import InputError
from wind.models import attention_of, pretrained


def load_policy(folder: Path, precision: str, attention: Attention = "auto") -> torch.nn.Module:
    """Return the causal language model in `folder`, in eval mode, with gradients.

    Every call returns a new model. Every dropout is off, so that training starts at the recorded
    log-probabilities. Raises InputError if the folder does not load or lacks weights.
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
            f"{folder} does not fit its config: {len(wrong)} missing or misshapen weights, "
            f"such as {wrong[0]}"
        )
    policy: torch.nn.Module = model.eval()
    return policy


def declared_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter declared by the config in `folder`.

    Reads no weights.
    """
    with torch.device("meta"):
        model = pretrained.model_without_weights(_config(folder))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _config(folder: Path) -> Any:
    config = pretrained.load_config(folder)
    _switch_dropout_off(config)
    return config


def _switch_dropout_off(config: Any) -> None:
    """Set all dropout probabilities of a transformers config to zero.

    Includes the configs nested inside it.
    """
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            _switch_dropout_off(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
