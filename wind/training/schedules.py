"""Learning-rate schedules: a factor in (0, 1] for every optimiser step, as a function of the step
alone.

Nothing here has state, so a resumed training needs no scheduler to restore. Warm-up is linear and
starts above zero, so that the first step is not wasted.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from wind.config.training import TrainingConfig


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0, of `steps`."""
    warmup = math.ceil(training.warmup_fraction * steps)
    if step < warmup:
        return training.lr * (step + 1) / warmup
    return training.lr * SCHEDULES[training.schedule]((step - warmup) / (steps - warmup))


def constant(share: float) -> float:
    """1 throughout."""
    return 1.0


def linear(share: float) -> float:
    """From 1 towards 0, which the step after the last would reach; `share` of the steps after
    warm-up are done.
    """
    return 1 - share


def cosine(share: float) -> float:
    """Half a cosine from 1 towards 0."""
    return (1 + math.cos(math.pi * share)) / 2


SCHEDULES: Final[Mapping[str, Callable[[float], float]]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
