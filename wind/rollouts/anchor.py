"""The reference of an on-policy training.

It is a frozen model, or an exponential moving average of the policy's weights: anchor <- (1 - rate)
anchor + rate policy after every optimizer step (MATH 1.6 eq. 18), in float32 whatever the precision
of the training, since a hundredth of an update is lost in bfloat16. Each rank holds the same parts
as of the policy: under ZeRO-3 its shards.

With adapters the average is over W + (alpha/rank) B A, as without them: averages of A and of B do
not multiply to the average of the product. Only the layers with adapters have an average of their
own; any other weight equals the policy's, and is held only if the reference has a different one.
"""

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from wind.training.policies import load_policy
from wind.training.weights import PolicyWeights

PRECISION: Final = "float32"


class Anchor:
    """The reference's weights; this rank holds its parts."""

    def __init__(self, engine: Any, policy: PolicyWeights, start: Path, rate: float) -> None:
        self._engine = engine
        self._policy = policy
        self._rate = rate
        self._parts: dict[str, torch.Tensor] = {}
        for name, weight in load_policy(start, PRECISION).requires_grad_(False).named_parameters():
            # All ranks compare whole weights, so that all decide alike.
            if policy.is_trained(name) or not torch.equal(weight, policy.whole(name).to(weight)):
                self._parts[name] = policy.part_of(name, weight.data)

    def move(self) -> None:
        """Move `rate` of the way to the policy; collective under ZeRO-3.

        At rate 1 it becomes the policy, and at 0 it stays, to the last bit.
        """
        for name, part in self._parts.items():
            part.lerp_(self._policy.part(name).float(), self._rate)

    def whole(self, name: str) -> torch.Tensor:
        """Return the whole weight `name`; collective under ZeRO-3."""
        return (
            self._policy.whole_of(name, self._parts[name])
            if name in self._parts
            else self._policy.whole(name).float()
        )

    def save(self, folder: Path) -> None:
        """Write this rank's parts to `folder`.

        If all ranks hold the same, only the first one writes.
        """
        if self._engine.global_rank == self._writer():
            save_file(self._parts, self._file(folder))

    def load(self, folder: Path) -> None:
        """Restore the parts that `save` wrote."""
        saved = load_file(self._file(folder))
        for name, part in self._parts.items():
            part.copy_(saved[name])

    def weights(self) -> dict[str, torch.Tensor]:
        """Gather the whole weights on the CPU of rank 0.

        They are named as in a state dict. Other ranks get an empty mapping. Every rank must call
        it.
        """
        names = self._policy.state_names()
        wholes = {}
        for name in dict.fromkeys(names.values()):
            whole = self.whole(name)
            if self._engine.global_rank == 0:
                wholes[name] = whole.to("cpu", copy=True)
        # One tensor for all names of a tied weight, so that saving recognizes the tie.
        return (
            {named: wholes[name] for named, name in names.items()}
            if self._engine.global_rank == 0
            else {}
        )

    def _writer(self) -> int:
        return int(self._engine.global_rank) if self._engine.zero_optimization_stage() == 3 else 0

    def _file(self, folder: Path) -> Path:
        return folder / f"anchor-{self._writer()}.safetensors"
