"""Train the next policy with DeepSpeed on this iteration's rewarded generations.

One row of the dataset is one number of one optimizer step. The trained model is published beside it
as the output `model`. The frozen policies enter as the `logps` columns, so only the model being
trained is in memory. An interrupted training resumes from its last checkpoint, at the exact batch,
and ends with the same bytes as an uninterrupted one.
"""

from typing import ClassVar, Final

import polars as pl
import pyarrow as pa

from wind.config.objectives import ObjectiveConfig
from wind.config.training import TrainingConfig
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, no_function, one_side, unforeseen
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.schemas import Column, Declaration

DATASET = Declaration(
    row="one number of one optimizer step",
    columns=(
        Column("step", pa.int32(), "1-based optimizer step"),
        Column("metric", pa.string(), "what is measured: loss, gradient norm, learning rate, ..."),
        Column("value", pa.float64(), "of the metric at this step"),
    ),
    has_models=True,
    key=("step", "metric"),
    foreign_keys=(),
)


class FitSpec(Spec):
    """Inputs shared by all trainings, wherever their rows come from."""

    stage: ClassVar[str]

    # the starting point, pi_t
    policy: Model
    prompts: Dataset
    objective: ObjectiveConfig
    training: TrainingConfig
    seed: int
    # 1-based; together with the seed it fixes the order of prompts
    iteration: int


class TrainingSpec(FitSpec):
    """Inputs of a training on stored rows."""

    stage = "training"

    generations: Dataset  # sampled by `policy`
    rewards: Dataset
    win_rates: Dataset
    selections: Dataset
    logps: Dataset  # log-probabilities of `generations` under policy and reference


def compute(
    spec: TrainingSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    """Train, verify and publish the model.

    The rows of the returned shard are the loss, gradient norm, learning rate and metrics of every
    step.
    """
    from wind.training.runs import train

    return train(spec, store, place, progress)


def numbers(spec: FitSpec, table: pa.Table) -> dict[str, float]:
    """Return the number of steps and the first and last loss."""
    losses = pl.DataFrame(table).filter(pl.col("metric") == "loss").sort("step")["value"].to_list()
    return {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}


# What foreign keys name is in the spec by the same name.
_RELATED = ("prompts", "policy", "generations", "rewards", "win_rates", "selections", "logps")

STAGE: Final[Stage[TrainingSpec]] = Stage(
    name="training",
    spec=TrainingSpec,
    dataset=DATASET,
    dropped=None,
    shards=lambda spec, store: 1,
    compute=compute,
    numbers=numbers,
    worker=lambda spec: "training",
    role=Role(
        phase="training",
        sides=("",),
        side=one_side,
        history=(),
        is_timed=True,
        has_drift=False,
        expected=unforeseen,
        related_parents={"": {name: name for name in _RELATED}},
        function_seconds=no_function,
    ),
)
