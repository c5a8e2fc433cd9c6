"""Objectives: pure functions from sequence log-probabilities to a loss, chosen by name from one
mapping.

An objective has the signature `(logps_B, batch, *, its own parameters) -> loss`. The loss is a mean
over the rows, and so is each metric, so that micro-batches of whole groups combine by their numbers
of rows. Gradient flows through `logps_B` alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch

from wind.config.objectives import ObjectiveConfig
from wind.objectives.batch import Batch, Metrics, Objective, metrics
from wind.objectives.best_of_n import bonbon, bond, jbond, raft
from wind.objectives.policy_gradients import grpo, rloo
from wind.objectives.preferences import dpo, inpo, ipo, rebel
from wind.objectives.qrpo import qrpo
from wind.objectives.sppo import sppo, sppo_pair
from wind.objectives.wind import wind

__all__ = ["OBJECTIVES", "Batch", "Metrics", "Objective", "loss_for", "objective_for"]

OBJECTIVES: Final[Mapping[str, Callable[..., torch.Tensor]]] = {
    "wind": wind,
    "sppo": sppo,
    "sppo_pair": sppo_pair,
    "inpo": inpo,
    "dpo": dpo,
    "ipo": ipo,
    "rebel": rebel,
    "raft": raft,
    "bonbon": bonbon,
    "bond": bond,
    "jbond": jbond,
    "grpo": grpo,
    "rloo": rloo,
    "qrpo": qrpo,
}


def objective_for(config: ObjectiveConfig) -> Objective:
    """The objective that `config` names, with its parameters bound, and the metrics of its batches."""
    loss = loss_for(config)

    def objective(logps_B: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        return loss(logps_B, batch), metrics(logps_B, batch)

    return objective


def loss_for(config: ObjectiveConfig) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
    """The loss that `config` names, with its parameters bound: all of its section but what says how
    rows are drawn.
    """
    return partial(
        OBJECTIVES[config.name],
        **config.model_dump(exclude={"name", "refresh_steps", "anchor_samples"}),
    )
