"""Losses of sequence log-probabilities, looked up by the name of their objective.

An objective has the signature `(logps_B, batch, *, parameters) -> loss`. `logps_B` [B] holds
log pi_theta(y|x) of the rows, in nats; gradient flows through it alone, and into the learned
intercept. The loss is a scalar mean over the rows, as is each metric, so that micro-batches of
whole groups combine in proportion to their numbers of rows.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch

from wind.config.objective_facts import ObjectiveSection
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


def objective_for(config: ObjectiveSection) -> Objective:
    """Return a function from a batch to its loss and metrics.

    The function takes `logps_B` and `batch`; the loss and its parameters are those of the section
    `config`.
    """
    loss = loss_for(config)

    def objective(logps_B: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        return loss(logps_B, batch), metrics(logps_B, batch)

    return objective


def loss_for(config: ObjectiveSection) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
    """Return the loss that the section `config` names, with its parameters bound."""
    return partial(OBJECTIVES[config.name], **config.parameters())
