"""The reference of an on-policy training: a frozen model, or an exponential moving average of the policy's weights.

anchor <- (1 - rate) anchor + rate policy after every optimiser step (MATH 1.6 eq. 18), in float32 whatever the precision of the
training: a hundredth of an update is lost in bfloat16. Each rank holds what it holds of the policy, under ZeRO-3 a part.
"""

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from wind.training.engine import part_of, weight_parts, whole_of
from wind.training.policies import load_policy

PRECISION: Final = "float32"


class Anchor:
    """The parts of the reference's weights that this rank holds."""

    def __init__(self, engine: Any, start: Path, rate: float) -> None:
        self._engine = engine
        self._rate = rate
        weights = dict(load_policy(start, PRECISION).named_parameters())
        self.parts = {
            name: part_of(engine, name, weights[name].detach().to(part.device)) for name, part in weight_parts(engine).items()
        }

    def move(self) -> None:
        """Go `rate` of the way to the policy: at 1 it is the policy, at 0 it stays, to the last bit."""
        for name, part in weight_parts(self._engine).items():
            self.parts[name].lerp_(part.float(), self._rate)

    def save(self, folder: Path) -> None:
        """Write this rank's parts to `folder`; where all ranks hold the same, the first one's."""
        if self._engine.global_rank == self._writer():
            save_file(self.parts, self._file(folder))

    def load(self, folder: Path) -> None:
        """Take up the parts that `save` wrote."""
        saved = load_file(self._file(folder))
        for name, part in self.parts.items():
            part.copy_(saved[name])

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole weights by the names of a state dict, on the CPU of rank 0; empty on the others. Every rank must call it."""
        model = self._engine.module.model
        by_weight = {id(weight): name for name, weight in model.named_parameters()}
        wholes = {}
        for name, part in self.parts.items():
            whole = whole_of(self._engine, name, part)
            if self._engine.global_rank == 0:
                wholes[name] = whole.to("cpu", copy=True)
        if self._engine.global_rank != 0:
            return {}
        # A tied weight has several names in a state dict and one tensor, so that saving sees that it is tied.
        named = model.state_dict(keep_vars=True).items()
        return {name: wholes[by_weight[id(weight)]] for name, weight in named if id(weight) in by_weight}

    def _writer(self) -> int:
        return int(self._engine.global_rank) if self._engine.zero_optimization_stage() == 3 else 0

    def _file(self, folder: Path) -> Path:
        return folder / f"anchor-{self._writer()}.safetensors"
