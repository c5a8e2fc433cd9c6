"""The forward and backward passes of one micro-batch.

One pass computes log-probabilities, loss and gradient. Where its activations would not fit into
memory, two passes compute the same gradient in pieces (GradCache, arXiv 2101.06983): first the
log-probabilities of all rows without keeping activations, from them the loss and its slope in each
log-probability, then piece by piece the gradient of the log-probabilities times those slopes. That
costs one more forward pass, and the loss may compare all rows of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from wind.objectives import Batch, Metrics, Objective
from wind.training.assignments import World
from wind.training.batches import (
    Inputs,
    Integers,
    Rows,
    model_inputs,
    objective_batch,
    pieces,
    rows_of,
)


@dataclass(frozen=True)
class Judged:
    """What the objective said of a micro-batch."""

    # log-probabilities, [B]; their gradient is the slope of the loss times its weight
    logps: torch.Tensor
    # group of each row within the micro-batch, [B]
    group: torch.Tensor
    loss: torch.Tensor
    metrics: Metrics


@dataclass(frozen=True)
class Passes:
    """How this rank computes the gradients of micro-batches."""

    engine: Any
    objective: Objective
    world: World
    # whether rows share their prompts
    is_shared: bool
    # tokens of one forward and backward pass; None: any
    most_tokens: int | None

    def accumulate(
        self, rows: Rows, groups_of_ranks: Sequence[Integers], weight: float, *, ends_step: bool
    ) -> Judged:
        """Accumulate the gradient of `weight` times the loss of this rank's groups.

        Passes are collective, so that all ranks make as many as the one that needs the most. With
        `ends_step` the next step of the engine is an optimizer step.
        """
        groups = groups_of_ranks[self.world.rank]
        index_B, group_B = rows_of(rows, groups)
        batch = objective_batch(rows, groups, self.world.device)
        cut = self._pieces(rows, groups)
        passes = max(len(self._pieces(rows, others)) for others in groups_of_ranks)
        # beyond this rank's own, pieces whose slopes are zero
        inputs = [
            model_inputs(
                rows, index_B[piece], group_B[piece], self.world.device, is_shared=self.is_shared
            )
            for piece in [*cut, *cut[:1] * (passes - len(cut))]
        ]
        if passes == 1:
            self._begin(ends_step=ends_step)
            return self._in_one(inputs[0], batch, weight)
        return self._in_two(inputs, batch, weight, ends_step=ends_step)

    def _pieces(self, rows: Rows, groups: Integers) -> list[slice]:
        index_B, group_B = rows_of(rows, groups)
        if self.most_tokens is None:
            return [slice(0, len(index_B))]
        return pieces(rows, index_B, group_B, self.most_tokens, is_shared=self.is_shared)

    def _begin(self, *, ends_step: bool) -> None:
        """Tell the engine whether the next pass is the last one of an optimizer step.

        By itself it counts passes, of which every step has as many.
        """
        if self.most_tokens is not None:
            self.engine.set_gradient_accumulation_boundary(is_boundary=ends_step)

    def _in_one(self, inputs: Inputs, batch: Batch, weight: float) -> Judged:
        outputs = _parts(self.engine(*inputs))
        outputs[0].retain_grad()
        loss, metrics = self._judge(outputs, batch)
        self.engine.backward((loss * weight).float())
        return Judged(outputs[0], batch.group, loss, metrics)

    def _in_two(
        self, inputs: Sequence[Inputs], batch: Batch, weight: float, *, ends_step: bool
    ) -> Judged:
        with torch.no_grad():
            computed = [_parts(self.engine.module(*piece)) for piece in inputs]
        rows = len(batch.group)
        leaves = [torch.cat(part)[:rows].requires_grad_() for part in zip(*computed, strict=True)]
        loss, metrics = self._judge(leaves, batch)
        slopes = torch.autograd.grad(loss * weight, leaves)
        leaves[0].grad = slopes[0]
        first = 0
        for number, piece in enumerate(inputs):
            is_last = number == len(inputs) - 1
            self._begin(ends_step=ends_step and is_last)
            outputs = _parts(self.engine(*piece))
            last = min(first + len(outputs[0]), rows)
            total = torch.zeros((), dtype=torch.float64, device=self.world.device)
            for output, slope in zip(outputs, slopes, strict=True):
                # a pass for the other ranks' sake contributes the number zero
                own = output[: last - first] if last > first else output * 0.0
                total = total + (own * (slope[first:last] if last > first else 0.0)).sum()
            self.engine.backward(total.float())
            if not is_last:
                self.engine.step()
            first = last
        return Judged(leaves[0], batch.group, loss, metrics)

    def _judge(self, outputs: Sequence[torch.Tensor], batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Return loss and metrics of log-probabilities, and of intercepts if they are learned."""
        if len(outputs) == 1:
            return self.objective(outputs[0], batch)
        logps_B, intercept_B = outputs
        loss, metrics = self.objective(logps_B, replace(batch, intercept=intercept_B))
        return loss, metrics | {"intercept": intercept_B.detach().mean()}


def _parts(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs
