"""Rewards: a number, or a row of preferences, for each response.

One row is one generation as the reward sees it. A *rule* is a user's Python function over a batch
of prompts, responses and gold answers; a *classifier* is a stored sequence-classification model
with one output; a *pairwise* reward is a stored model that compares two responses, and its row
holds a preference for each other response to the prompt; a *judge* is a language model that
compares or scores responses, and a *remote* reward another server, both behind HTTP endpoints.
*math*, *overlong* and *repetition* are ready, and a *mix* combines several rewards. Each is a
module of `wind.rewards.kinds`.
What the config names by path is resolved before a stage is planned: models enter the store, files
and source code the spec, as text or digests.
"""

import json
from typing import Any, Final, Self

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, model_validator

from wind.config.models import InferenceConfig
from wind.endpoints import connect, take_counts
from wind.errors import DatasetError
from wind.quantities import IS_TRUNCATED
from wind.rewards.columns import DATASET
from wind.rewards.functions import Responses
from wind.rewards.kinds import Reward as Reward
from wind.rewards.kinds import resolve_reward as resolve_reward
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, as_many_as
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, label

# the columns of `judging_prompts`
JUDGED_BY: Final = ("prompt_id", "messages", "answer", "prompt", "conversation")


class RewardsSpec(Spec):
    """The generations to reward, and the reward."""

    prompts: Dataset
    generations: Dataset
    # other generations for the same prompts, which a relative reward compares these with instead
    # of with their siblings
    opponents: Dataset | None = None
    reward: Reward
    inference: InferenceConfig

    @model_validator(mode="after")
    def _opponents_are_compared(self) -> Self:
        if self.opponents is not None and not self.reward.is_relative:
            raise ValueError(
                f"a {self.reward.kind} rewards each response by itself: "
                "only a pairwise reward and a standardized mix have opponents"
            )
        return self

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs, a reward's `model` among them."""
        return super().parents() | self.reward.parents()


def judging_prompts(store: Store, prompts: Dataset, *further: str) -> pl.DataFrame:
    """Return what responses to `prompts` are judged by.

    That is the columns JUDGED_BY and `further` ones. `conversation` is the JSON of a prompt's
    messages with all their fields, null where role and text are all they have.
    """
    frame = store.frame(prompts, [*JUDGED_BY[:-1], "meta", *further])
    field = store.manifest(prompts).computed_by.get("spec", {}).get("field")
    held = (json.loads(meta).get(field) for meta in frame["meta"])
    whole = [
        None if conversation is None else json.dumps(conversation, ensure_ascii=False)
        for conversation in held
    ]
    return frame.drop("meta").with_columns(conversation=pl.Series(whole, dtype=pl.String))


def sampled_columns(reward: Reward) -> list[str]:
    """Return the columns of generations that `reward` reads."""
    tokens = ["response_token_ids", "finish_reason"] if reward.reads_tokens else []
    return ["prompt_id", "sample_index", "response", *tokens]


def responses(prompts: pl.DataFrame, generations: pl.DataFrame) -> Responses:
    """Join `generations` with what their prompts are judged by.

    `generations` may have their token ids, with their finish_reason. The order is that of
    `generations`. Raises DatasetError if a prompt is missing.
    """
    rows = generations.join(
        prompts, on="prompt_id", how="left", maintain_order="left", validate="m:1"
    )
    lost = rows.filter(pl.col("messages").is_null())
    if len(lost):
        raise DatasetError(
            f"{len(lost)} responses have no prompt, such as prompt {lost['prompt_id'][0]}: "
            "rerun generations"
        )
    columns = (
        "prompt_id",
        "sample_index",
        "messages",
        "response",
        "answer",
        "conversation",
        "prompt",
    )
    tokens = {}
    if "response_token_ids" in rows.columns:
        tokens["token_ids"] = rows["response_token_ids"].to_list()
        tokens["is_truncated"] = rows.select(IS_TRUNCATED).to_series().to_list()
    return Responses(*(rows[column].to_list() for column in columns), **tokens)


def refuse_relative(store: Store, rewards: Dataset) -> None:
    """Raise DatasetError if `rewards` cannot be compared with those of other responses.

    Those are relative rewards that were not scored against the others, as their opponents.
    """
    recorded = store.manifest(rewards).computed_by.get("spec", {}).get("reward")
    # published by hand, without a spec
    if recorded is None:
        return
    reward: Reward = TypeAdapter(Reward).validate_python(recorded)
    if reward.is_relative:
        raise DatasetError(
            f"{label(rewards)} are relative to the responses they were scored with: "
            "score one side against the other, as its opponents"
        )


def _shards(spec: RewardsSpec, store: Store) -> int:
    return len(store.manifest(spec.generations).files)


def _compute(
    spec: RewardsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    prompts = judging_prompts(store, spec.prompts)
    columns = sampled_columns(spec.reward)
    generations = store.frame(spec.generations, columns, shard=index)
    rows = responses(prompts, generations)
    opponents = None
    if spec.opponents is not None:
        theirs = store.frame(spec.opponents, columns).join(
            generations, on="prompt_id", how="semi", maintain_order="left"
        )
        opponents = responses(prompts, theirs)
    connect(place.connections)
    judge = spec.reward.judge(store, spec.inference, place.device, place.function_seconds)
    take_counts()
    made = judge(rows, opponents, progress)
    return Shard(
        pa.table({"prompt_id": rows.prompt_ids, "sample_index": rows.sample_indexes, **made}),
        schema=spec.reward.row_schema(has_opponents=opponents is not None),
        counts=take_counts(),
    )


def _numbers(spec: RewardsSpec, table: pa.Table) -> dict[str, float]:
    """Return the reward's mean, standard deviation, and share of distinct values.

    The share is the number of distinct rewards of each prompt, added up, over the number of rows.
    A kind of reward may add numbers of its own.
    """
    distinct = (
        table.select(["prompt_id", "reward"])
        .group_by(["prompt_id", "reward"])
        .aggregate([])
        .num_rows
    )
    return {
        "mean_reward": pc.mean(table["reward"]).as_py(),
        "std_reward": pc.stddev(table["reward"]).as_py(),
        "distinct_share": distinct / table.num_rows,
        **spec.reward.numbers(table),
    }


def function_seconds(config: Any) -> float | None:
    """Return how many seconds one call of a user's function may take.

    `config` is the config of a recipe, whose reward is the one that is asked.
    """
    seconds: float | None = config.reward.seconds_per_call()
    return seconds


STAGE: Final[Stage[RewardsSpec]] = Stage(
    name="rewards",
    spec=RewardsSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=lambda spec: "transformers",
    role=Role(
        phase="training",
        sides=("", "eval_", "reference_"),
        side=lambda spec, side_of: side_of(spec.generations),
        history=("train", "eval"),
        is_timed=True,
        has_drift=True,
        expected=as_many_as("generations"),
        related_parents={},
        function_seconds=function_seconds,
    ),
)
