"""Objectives: pure functions from sequence log-probabilities to a loss, chosen by name from one mapping.

An objective has the signature `(logps_B, batch, *, its own parameters) -> (loss, metrics)`. The loss is a mean over the rows, and
so is each metric, so that micro-batches combine by their numbers of rows. Gradient flows through `logps_B` alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from wind.config import WindObjectiveConfig
from wind.objectives.batch import Batch, Loss, Objective
from wind.objectives.wind import wind

__all__ = ["OBJECTIVES", "Batch", "Loss", "Objective", "objective_for"]

OBJECTIVES: Final[Mapping[str, Callable[..., Loss]]] = {"wind": wind}


def objective_for(config: WindObjectiveConfig) -> Objective:
    """The objective that `config` names, with its parameters bound."""
    return partial(OBJECTIVES[config.name], **config.model_dump(exclude={"name"}))
