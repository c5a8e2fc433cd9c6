"""On-policy training: sample, reward and score rows while the policy learns.

One row is one response that trained the policy, with the optimizer step it was sampled for. Every
`objective.refresh_steps` steps, the policy as it then is answers the prompts of the coming steps;
for BOND and J-BOND its anchor answers them too. The reference is a stored model, or a moving
average of the policy's weights that starts there (MATH 1.6). A pairwise reward counts as the mean
preference over all other responses to the same prompt at the same step, including the anchor's: a
single number, so that all responses can be ordered. A standardized mix is standardized among the
same. The numbers of the optimizer steps are the output `training`, a dataset like that of a
training on stored rows, whose outputs are the models.
"""

from typing import Final, Self

import polars as pl
import pyarrow as pa
from pydantic import model_validator

from wind.config.models import InferenceConfig
from wind.config.rewards import WinRateConfig
from wind.config.sampling import SamplingConfig
from wind.errors import ConfigError
from wind.prompt_parts import sampled_prompts
from wind.quantities import IS_TRUNCATED, OF_POLICY
from wind.rewards import function_seconds
from wind.rewards.kinds import Reward
from wind.stages import Expected, Place, Progress, Role, RowsOf, Shard, Stage, one_side
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Model
from wind.store.schemas import PROMPT, PROMPT_ID, SAMPLE, TOKENS, Column, Declaration, ForeignKey
from wind.training import FitSpec

DATASET = Declaration(
    row="one response sampled by the policy in training, or by its anchor",
    columns=(
        Column("step", pa.int32(), "1-based optimizer step that it was sampled for"),
        PROMPT_ID,
        Column(
            "sample_index",
            pa.int32(),
            "0 .. N-1 of the policy, then N .. 2N-1 of the anchor, "
            "where the objective draws from it",
        ),
        Column(
            "drawn_from",
            pa.string(),
            "policy | anchor, as it was when the samples of this step were drawn",
        ),
        Column("response", pa.string(), "text without special tokens"),
        Column("response_token_ids", TOKENS, "includes the stop token when finish_reason is stop"),
        Column("finish_reason", pa.string(), "stop | length"),
        Column("seed", pa.int64(), "of this response's own random generator"),
        Column(
            "reward",
            pa.float64(),
            "higher is better; of a pairwise reward the mean preference over the others",
        ),
        Column(
            "win_rate",
            pa.float64(),
            "[0, 1], among those drawn from the same for the same prompt and step: mean 1/2",
        ),
        Column(
            "rank",
            pa.int32(),
            "among the same; 1 is best, equal rewards are ordered by sample_index",
        ),
        Column(
            "logp_policy",
            pa.float64(),
            "nats <= 0, under the policy when the samples of this step were drawn",
        ),
        Column(
            "logp_reference",
            pa.float64(),
            "nats <= 0, under the reference at that time: an ema moves",
        ),
    ),
    has_components=True,
    has_models=True,
    key=("step", *SAMPLE),
    foreign_keys=(ForeignKey(PROMPT, "prompts"),),
)


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


def refuse_taken(reward: Reward) -> None:
    """Raise ConfigError if a component of `reward` has the name of another column."""
    for name in reward.component_names():
        if name in DATASET.schema.names:
            raise ConfigError(
                f"the reward has a component {name}, and rollouts have a column of that name: "
                "choose another name"
            )


def schema_of(spec: RolloutsSpec) -> pa.Schema:
    """Return the schema of the rollouts of `spec`."""
    return DATASET.with_components(spec.reward.component_names())


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


def _expected(spec: RolloutsSpec, store: Store, rows_of: RowsOf) -> Expected | None:
    if rows_of(spec.prompts) is None:
        return None
    prompts = store.frame(spec.prompts, ["prompt_id", "split"])
    asked = sampled_prompts(prompts, "train", spec.seed, spec.iteration, spec.parts)
    samples = spec.sampling.samples_per_prompt
    drawn = samples + spec.objective.anchor_samples_for(samples)
    rows = len(asked) * spec.training.epochs * drawn
    return Expected(rows, rows * spec.sampling.max_new_tokens)


STAGE: Final[Stage[RolloutsSpec]] = Stage(
    name="rollouts",
    spec=RolloutsSpec,
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
        history=("train",),
        is_timed=True,
        has_drift=True,
        expected=_expected,
        related_parents={},
        function_seconds=function_seconds,
    ),
)
