"""No number that is not finite reaches the weights: what was not, at which step, and for which
prompts.

Each rank marks what it saw of its own rows, the marks are summed over the ranks with the metrics,
and before the optimiser's step all ranks decide alike. The learning rate is blamed only for a
policy that steps have moved.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch

from wind.errors import TrainingError

KINDS: Final = 2  # of marks: log-probabilities, and what the objective made of them
NAMED: Final = 8  # prompts that an error names


def marks(
    logps_B: torch.Tensor, loss: torch.Tensor, group_B: torch.Tensor, groups: int
) -> torch.Tensor:
    """How many rows of each group have a log-probability, and how many a slope of the loss in it,
    that is not finite, [KINDS, G].

    `logps_B` has its gradient, which the model takes up in float32. A loss that is not finite
    though all its slopes are counts against all rows.
    """
    assert logps_B.grad is not None
    is_steep_B = ~logps_B.grad.float().isfinite()
    is_steep_B |= ~loss.isfinite() & ~is_steep_B.any()
    marks_K_B = torch.stack([~logps_B.detach().isfinite(), is_steep_B]).double()
    return torch.zeros(KINDS, groups, dtype=torch.float64, device=group_B.device).index_add(
        1, group_B, marks_K_B
    )


def refuse_marked(marks_K_G: torch.Tensor, prompt_ids: Sequence[str], step: int) -> None:
    """Raises TrainingError naming step and prompts if a group has a mark; `prompt_ids` are those of
    the groups.
    """
    lost, steep = (
        [name for name, mark in zip(prompt_ids, marks_G.tolist(), strict=True) if mark]
        for marks_G in marks_K_G
    )
    if lost:
        raise TrainingError(
            f"step {step} was not taken: responses to {_named(lost)} have a log-probability that is not finite: "
            f"{culprit(step > 1, 'training.precision')}"
        )
    if steep:
        raise TrainingError(
            f"step {step} was not taken: the loss of {_named(steep)} or its slope is not finite, and the log-probabilities are: "
            "look at the rewards there and at the settings of the objective"
        )


def refuse_norm(norm: float, prompt_ids: Sequence[str], step: int) -> None:
    """Raises TrainingError naming step and prompts if the norm of the gradient is not finite."""
    if not math.isfinite(norm):
        raise TrainingError(
            f"step {step} was not taken: the norm of its gradient is not finite, and its losses are: look at the size of the "
            f"rewards and of the objective's settings, and at {_named(prompt_ids)}"
        )


def refuse_probe(logps: Sequence[float], prompt_ids: Sequence[str], steps: int) -> None:
    """Raises TrainingError naming the prompts if the policy that `steps` steps have left gives a
    probe what is not finite.
    """
    if not all(map(math.isfinite, logps)):
        raise TrainingError(
            f"after the last step, {steps}, responses to {_named(prompt_ids)} have a log-probability that is not finite: "
            f"{culprit(True, 'training.precision')}"
        )


def culprit(was_trained: bool, dtype: str) -> str:
    """What makes a model's log-probabilities not finite, for the end of a message; `dtype` is the
    setting of its precision.
    """
    return (
        "lower training.lr"
        if was_trained
        else f"no step has moved the model yet, so its weights or {dtype} are at fault"
    )


def _named(prompt_ids: Sequence[str]) -> str:
    names, more = sorted(prompt_ids), len(prompt_ids) - NAMED
    return f"prompt{'s' * (len(names) > 1)} {', '.join(names[:NAMED])}{f' and {more} more' if more > 0 else ''}"
