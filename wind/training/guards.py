"""Keep non-finite numbers out of the weights, and report where they arose.

Each rank marks what it saw in its own rows, the marks are summed over the ranks together with the
metrics, and before the optimizer steps all ranks reach the same decision. The learning rate is
blamed only for a policy that has been updated.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch

from wind.errors import TrainingError

# of marks: log-probabilities, and the objective's values of them
KINDS: Final = 2
# prompts that an error message names
NAMED: Final = 8


def marks(
    logps_B: torch.Tensor, loss: torch.Tensor, group_B: torch.Tensor, groups: int
) -> torch.Tensor:
    """Count the rows of each group with non-finite log-probabilities or slopes.

    Returns [KINDS, G]: rows whose log-probability is not finite, and rows whose slope of the loss
    in it is not finite. `logps_B` has its gradient, which the model receives in float32. A loss
    that is not finite although all its slopes are counts against all rows.
    """
    assert logps_B.grad is not None
    is_steep_B = ~logps_B.grad.float().isfinite()
    is_steep_B |= ~loss.isfinite() & ~is_steep_B.any()
    marks_K_B = torch.stack([~logps_B.detach().isfinite(), is_steep_B]).double()
    return torch.zeros(KINDS, groups, dtype=torch.float64, device=group_B.device).index_add(
        1, group_B, marks_K_B
    )


def refuse_marked(marks_K_G: torch.Tensor, prompt_ids: Sequence[str], step: int) -> None:
    """Raise TrainingError, naming step and prompts, if a group has a mark.

    `prompt_ids` are those of the groups.
    """
    lost, steep = (
        [name for name, mark in zip(prompt_ids, marks_G.tolist(), strict=True) if mark]
        for marks_G in marks_K_G
    )
    if lost:
        raise TrainingError(
            f"step {step} was not taken: responses to {_named(lost)} have a log-probability that "
            f"is not finite: {culprit(step > 1, 'training.precision')}"
        )
    if steep:
        raise TrainingError(
            f"step {step} was not taken: the loss of {_named(steep)} or its slope is not finite, "
            "although the log-probabilities are: check the rewards there and the settings of the "
            "objective"
        )


def refuse_norm(norm: float, prompt_ids: Sequence[str], step: int) -> None:
    """Raise TrainingError if the gradient norm is not finite.

    The message names step and prompts.
    """
    if not math.isfinite(norm):
        raise TrainingError(
            f"step {step} was not taken: the norm of its gradient is not finite, although its "
            "losses are: check the size of the rewards and of the objective's settings, and "
            f"{_named(prompt_ids)}"
        )


def refuse_probe(logps: Sequence[float], prompt_ids: Sequence[str], steps: int) -> None:
    """Raise TrainingError, naming the prompts, if a probe has non-finite `logps`.

    The probe was scored by the policy after `steps` optimizer steps.
    """
    if not all(map(math.isfinite, logps)):
        raise TrainingError(
            f"after the last step, {steps}, responses to {_named(prompt_ids)} have a "
            f"log-probability that is not finite: {culprit(True, 'training.precision')}"
        )


def culprit(was_trained: bool, dtype: str) -> str:
    """Return the likely cause of non-finite log-probabilities, to end a message.

    `dtype` is the setting that controls the model's precision.
    """
    return (
        "lower training.lr"
        if was_trained
        else f"no step has moved the model yet, so its weights or {dtype} are at fault"
    )


def _named(prompt_ids: Sequence[str]) -> str:
    names, more = sorted(prompt_ids), len(prompt_ids) - NAMED
    rest = f" and {more} more" if more > 0 else ""
    return f"prompt{'s' * (len(names) > 1)} {', '.join(names[:NAMED])}{rest}"
