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

from typing import Final, Self

import polars as pl
import pyarrow as pa
from pydantic import model_validator

from wind.config.objectives import anchor_samples, refresh_steps
from wind.config.recipe import InferenceConfig, SamplingConfig, WinRateConfig
from wind.generations import sampled_prompts
from wind.rewards import Reward, Rule, function_seconds
from wind.stages import Expected, Place, Progress, Role, RowsOf, Shard, Stage, one_side
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Model
from wind.store.schemas import PROMPT, PROMPT_ID, SAMPLE, TOKENS, Column, Declaration, ForeignKey
from wind.training import FitSpec

DATASET = Declaration(
    row="one response sampled by the policy in training, or by its anchor",
    columns=(
        Column("step", pa.int32(), "1-based optimiser step that it was sampled for"),
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
        return super().parents() | (
            {} if isinstance(self.reward, Rule) else {"model": self.reward.model}
        )


def schema_of(spec: RolloutsSpec) -> pa.Schema:
    """The columns of the rollouts of `spec`."""
    return DATASET.with_components(spec.reward.components if isinstance(spec.reward, Rule) else ())


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


def _expected(spec: RolloutsSpec, store: Store, rows_of: RowsOf) -> Expected | None:
    if rows_of(spec.prompts) is None:
        return None
    prompts = store.frame(spec.prompts, ["prompt_id", "split"])
    asked = sampled_prompts(prompts, "train", spec.seed, spec.iteration, spec.parts)
    samples = spec.sampling.samples_per_prompt
    drawn = samples + anchor_samples(spec.objective, samples)
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
        expected=_expected,
        related_parents={},
        function_seconds=function_seconds,
    ),
)
