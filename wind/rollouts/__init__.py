"""Rollouts: on-policy training, whose rows are sampled, rewarded and scored while the policy
learns.

One row is one response that trained the policy, with the optimiser step it was sampled for. Every
`objective.refresh_steps` steps the prompts of the steps to come are answered by the policy as it is
by then, and, for BOND and J-BOND, by their anchor too. The reference is a stored model, or a moving
average of the policy's weights that starts there (MATH 1.6). A pairwise reward counts as the mean
preference over all others of the same prompt and step, the anchor's included: a number, so that all
can be ordered. The numbers of the optimiser steps are the output `training`, a dataset like that of
a training on stored rows, whose outputs are the models.
"""

from typing import Self

import polars as pl
import pyarrow as pa
from pydantic import model_validator

from wind.config.models import InferenceConfig
from wind.config.objectives import refresh_steps
from wind.config.rewards import WinRateConfig
from wind.config.sampling import SamplingConfig
from wind.rewards.kinds import Reward
from wind.stages import Place, Progress, Shard, Stage
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Model
from wind.store.schemas import rewards_schema
from wind.training import FitSpec


class RolloutsSpec(FitSpec):
    """What determines a policy trained on its own fresh samples."""

    stage = "rollouts"

    reference: Model  # what it is held to; where `rate` is positive, where the average starts
    # share of the way to the policy that the reference goes with every optimiser step; 0: it stays
    rate: float
    reward: Reward
    sampling: SamplingConfig
    inference: InferenceConfig
    win_rate: WinRateConfig
    parts: int = 1  # of the train prompts, of which each iteration takes one

    @model_validator(mode="after")
    def _samples_afresh(self) -> Self:
        if refresh_steps(self.objective) is None:
            raise ValueError(
                f"the objective {self.objective.name} has no refresh_steps: it is for stored samples"
            )
        return self

    @property
    def refresh(self) -> int:
        """How many optimiser steps a refresh serves."""
        steps = refresh_steps(self.objective)
        assert steps is not None, "validated"
        return steps

    def parents(self) -> dict[str, AnyHandle]:
        """The stored inputs; a reward's model is one of them, as `model`."""
        return super().parents() | self.reward.parents()


def schema_of(spec: RolloutsSpec) -> pa.Schema:
    """The columns of the rollouts of `spec`."""
    return rewards_schema(spec.reward.component_names(), "rollouts")


def compute(
    spec: RolloutsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    """Sample and train, then verify and publish the models and the training's numbers; the rows are
    all that was trained on.
    """
    from wind.rollouts.runs import sample_and_train

    return sample_and_train(spec, store, place, progress)


def numbers(spec: RolloutsSpec, table: pa.Table) -> dict[str, float]:
    """The mean reward of the policy's samples for the first and for the last optimiser step, and
    the share that was cut short.
    """
    frame = pl.DataFrame(table.select(["step", "drawn_from", "reward", "finish_reason"])).filter(
        pl.col("drawn_from") == "policy"
    )
    rewards = frame.group_by("step").agg(pl.col("reward").mean()).sort("step")["reward"].to_list()
    truncated_share = (frame["finish_reason"] == "length").mean()
    assert isinstance(truncated_share, float)
    return {
        "first_reward": rewards[0],
        "last_reward": rewards[-1],
        "truncated_share": truncated_share,
    }


STAGE = Stage(
    name="rollouts",
    spec=RolloutsSpec,
    shards=lambda spec, store: 1,
    compute=compute,
    numbers=numbers,
)
