"""On-policy training: sample, reward and score rows while the policy learns.

One row is one response that trained the policy, with the optimizer step it was sampled for. Every
`objective.refresh_steps` steps, the policy as it then is answers the prompts of the coming steps;
for BOND and J-BOND its anchor answers them too. The reference is a stored model, or a moving
average of the policy's weights that starts there (MATH 1.6). A pairwise reward counts as the mean
preference over all other responses to the same prompt at the same step, including the anchor's: a
single number, so that all responses can be ordered. The numbers of the optimizer steps are the
output `training`, a dataset like that of a training on stored rows, whose outputs are the models.
"""

from typing import Self

import polars as pl
import pyarrow as pa
from pydantic import model_validator

from wind.config.models import InferenceConfig
from wind.config.rewards import WinRateConfig
from wind.config.sampling import SamplingConfig
from wind.quantities import IS_TRUNCATED, OF_POLICY
from wind.rewards.kinds import Reward
from wind.stages import Place, Progress, Shard, Stage
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Model
from wind.store.schemas import rewards_schema
from wind.training import FitSpec


class RolloutsSpec(FitSpec):
    """Inputs of a training on the policy's own fresh samples."""

    stage = "rollouts"

    # regularizes the policy; if `rate` is positive, the moving average starts here
    reference: Model
    # fraction of the way that the reference moves to the policy at every optimizer step; 0: it
    # stays
    rate: float
    reward: Reward
    sampling: SamplingConfig
    inference: InferenceConfig
    win_rate: WinRateConfig
    # of the train prompts; each iteration takes one
    parts: int = 1

    @model_validator(mode="after")
    def _samples_afresh(self) -> Self:
        if self.objective.steps_per_refresh is None:
            raise ValueError(
                f"the objective {self.objective.name} has no refresh_steps: "
                "it trains on stored samples"
            )
        return self

    @property
    def refresh(self) -> int:
        """Number of optimizer steps that one refresh serves."""
        steps = self.objective.steps_per_refresh
        assert steps is not None, "validated"
        return steps

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs; a reward's model is among them, as `model`."""
        return super().parents() | self.reward.parents()


def schema_of(spec: RolloutsSpec) -> pa.Schema:
    """Return the schema of the rollouts of `spec`."""
    return rewards_schema(spec.reward.component_names(), "rollouts")


def compute(
    spec: RolloutsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    """Sample and train, then verify and publish models and training numbers.

    The rows of the returned shard are all that the policy was trained on.
    """
    from wind.rollouts.runs import sample_and_train

    return sample_and_train(spec, store, place, progress)


def numbers(spec: RolloutsSpec, table: pa.Table) -> dict[str, float]:
    """Return the first and last mean reward and the truncated share.

    The rewards are means over the policy's samples for the first and the last optimizer step;
    truncated samples were cut at the token limit.
    """
    frame = pl.DataFrame(table.select(["step", "drawn_from", "reward", "finish_reason"])).filter(
        OF_POLICY
    )
    rewards = frame.group_by("step").agg(pl.col("reward").mean()).sort("step")["reward"].to_list()
    return {
        "first_reward": rewards[0],
        "last_reward": rewards[-1],
        "truncated_share": frame.select(IS_TRUNCATED.mean()).item(),
    }


STAGE = Stage(
    name="rollouts",
    spec=RolloutsSpec,
    shards=lambda spec, store: 1,
    compute=compute,
    numbers=numbers,
)
