"""Weights of the policy being trained, whole or in parts.

They go by the names they have in the policy without adapters. A part is one rank's portion of a
weight: all of it, or under ZeRO-3 its shard, flat and padded.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from wind.config.training import LoraConfig


class PolicyWeights:
    """The current weights of a policy under training.

    A weight with an adapter is W + (alpha/rank) B A in float32, which the export rounds once; any
    other has the precision of the training.
    """

    def __init__(self, engine: Any, lora: LoraConfig | None) -> None:
        self._engine = engine
        self._model = engine.module.model
        self._plain_names: Callable[[Iterable[str]], Mapping[str, str]] = lambda names: {
            name: name for name in names
        }
        self._updates: Mapping[str, Any] = {}
        if lora:
            from wind.training.lora import plain_names, updates  # imports peft, which takes seconds

            self._plain_names = plain_names
            self._updates = updates(self._model)
        names = self._plain_names(name for name, _ in self._model.named_parameters())
        self._weights = {plain: self._model.get_parameter(name) for plain, name in names.items()}

    def is_trained(self, name: str) -> bool:
        """Return True if optimizer steps change the weight `name`."""
        return name in self._updates or self._weights[name].requires_grad

    def part(self, name: str) -> torch.Tensor:
        """Return this rank's part of the weight `name`; collective under ZeRO-3."""
        weight = self._weights[name]
        if name not in self._updates:
            return _held(weight)
        update = self._updates[name]
        b, a = (self._whole_of(factor, _held(factor)) for factor in update.factors)
        return _held(weight).float() + self._part_of(weight, update.of(b, a))

    def whole(self, name: str) -> torch.Tensor:
        """Return the whole weight `name`; collective under ZeRO-3."""
        return self.whole_of(name, self.part(name))

    def part_of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of weight `name` if it were `whole`.

        The inverse of `whole_of`.
        """
        return self._part_of(self._weights[name], whole)

    def whole_of(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Assemble the whole weight `name` from every rank's part.

        Collective under ZeRO-3.
        """
        return self._whole_of(self._weights[name], part)

    def state_names(self) -> dict[str, str]:
        """Map every name of a state dict to its weight.

        A tied weight has several names.
        """
        state = self._model.state_dict(keep_vars=True)
        by_weight = {id(weight): name for name, weight in self._weights.items()}
        names = self._plain_names(state).items()
        return {
            plain: by_weight[id(state[name])]
            for plain, name in names
            if id(state[name]) in by_weight
        }

    def _part_of(self, weight: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        held = _held(weight)
        if not hasattr(weight, "ds_id"):
            return whole.to(held.device)
        size, rank = held.numel(), self._engine.global_rank
        flat = torch.nn.functional.pad(
            whole.flatten(), (0, size * self._engine.world_size - whole.numel())
        )
        return flat[rank * size : (rank + 1) * size].to(held.device, copy=True)

    def _whole_of(self, weight: Any, part: torch.Tensor) -> torch.Tensor:
        if not hasattr(weight, "ds_id"):
            return part
        # an offloaded part is in host memory
        ours = part.to(self._engine.device).contiguous()
        parts = [torch.empty_like(ours) for _ in range(self._engine.world_size)]
        torch.distributed.all_gather(parts, ours)
        return torch.cat(parts)[: weight.ds_numel].view(weight.ds_shape)


def _held(weight: torch.Tensor) -> torch.Tensor:
    held: torch.Tensor = getattr(weight, "ds_tensor", weight)
    return held.detach()
