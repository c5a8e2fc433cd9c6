"""Learning-rate schedules: a factor in (0, 1] per step.

Schedules have no state, so a resumed training restores none. Warm-up is linear and starts above
zero, so that the first step is not wasted.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from wind.config.training import TrainingConfig


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """Return the learning rate of 0-based optimizer step `step` of `steps`."""
    warmup = math.ceil(training.warmup_fraction * steps)
    if step < warmup:
        return training.lr * (step + 1) / warmup
    return training.lr * SCHEDULES[training.schedule]((step - warmup) / (steps - warmup))


def constant(share: float) -> float:
    """Stay at 1."""
    return 1.0


def linear(share: float) -> float:
    """Decrease linearly from 1 towards 0.

    The step after the last would reach 0; `share` is the fraction of steps after warm-up done.
    """
    return 1 - share


def cosine(share: float) -> float:
    """Follow half a cosine from 1 towards 0."""
    return (1 + math.cos(math.pi * share)) / 2


SCHEDULES: Final[Mapping[str, Callable[[float], float]]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
