"""Training: the policy of the next iteration, fitted with DeepSpeed to this iteration's rewarded
generations.

One row of the dataset is one number of one optimiser step; the trained model is published beside it
as the output `model`. The frozen policies enter as the `logps` columns, so only the model being
trained is in memory. An interrupted training goes on from its last checkpoint, at the exact batch,
and ends with the same bytes as one that was never interrupted.
"""

from typing import ClassVar

import polars as pl
import pyarrow as pa

from wind.config.objectives import ObjectiveConfig
from wind.config.training import TrainingConfig
from wind.stages import Place, Progress, Shard, Spec, Stage
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model


class FitSpec(Spec):
    """What every training is given, wherever its rows come from."""

    stage: ClassVar[str]

    policy: Model  # the start, pi_t
    prompts: Dataset
    objective: ObjectiveConfig
    training: TrainingConfig
    seed: int
    iteration: int  # 1-based; with the seed it fixes the order of prompts


class TrainingSpec(FitSpec):
    """What determines a policy trained on stored rows."""

    stage = "training"

    generations: Dataset  # sampled by `policy`
    rewards: Dataset
    win_rates: Dataset
    selections: Dataset
    logps: Dataset  # log-probabilities of `generations` under policy and reference


def compute(
    spec: TrainingSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    """Train, verify and publish the model; the rows are loss, gradient norm, learning rate and
    metrics of every step.
    """
    from wind.training.runs import train

    return train(spec, store, place, progress)


def numbers(spec: FitSpec, table: pa.Table) -> dict[str, float]:
    """The number of optimiser steps, and the loss of the first and of the last."""
    losses = pl.DataFrame(table).filter(pl.col("metric") == "loss").sort("step")["value"].to_list()
    return {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}


STAGE = Stage(
    name="training",
    spec=TrainingSpec,
    shards=lambda spec, store: 1,
    compute=compute,
    numbers=numbers,
)
