"""Rewards: one number for each response, from a rule or from a classifier.

One row is one generation as the reward sees it. A *rule* is a user's Python function over a batch of prompts, responses and gold
answers; a *classifier* is a stored sequence-classification model with one output. Both stand behind `RewardModel`. What the
config names by path enters the store, or the spec as a digest or text, before a stage is planned: see `resolve_reward`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from wind.config import ClassifierRewardConfig, Function, InferenceConfig, Name, PolicyConfig, RewardConfig
from wind.datasets import AnyHandle, Dataset, Model, Store
from wind.errors import ConfigError, DatasetError, InputError
from wind.rewards.sources import source_digest
from wind.schemas import SCHEMAS, rewards_schema
from wind.sections import Section
from wind.stages import Place, Progress, Shard, Spec, Stage

if TYPE_CHECKING:
    from wind.rewards.functions import Floats, Responses


class Rule(Section):
    """A Python function, `module:function`, with the digest of its source."""

    kind: Literal["rule"] = "rule"
    function: Function
    components: tuple[Name, ...] = ()
    source_digest: str


class Classifier(Section):
    """A stored sequence-classification model and how a prompt and a response become its input."""

    kind: Literal["classifier"] = "classifier"
    model: Model
    template: str = "chat"  # "chat": the model's own; "none": prompt and response as a text pair; else Jinja text


class RewardsSpec(Spec):
    """The generations to reward and the reward."""

    prompts: Dataset
    generations: Dataset
    reward: Annotated[Rule | Classifier, Field(discriminator="kind")]
    inference: InferenceConfig

    def parents(self) -> dict[str, AnyHandle]:
        """The stored inputs; a classifier's model is one of them, as `model`."""
        return super().parents() | ({"model": self.reward.model} if isinstance(self.reward, Classifier) else {})


class RewardModel(Protocol):
    """What turns responses into numbers."""

    def rewards(self, rows: "Responses", progress: Progress) -> dict[str, "Floats"]:
        """The column `reward` and one per component, a finite float for each of `rows`. Raises InputError otherwise."""
        ...


def resolve_reward(store: Store, config: RewardConfig) -> Rule | Classifier:
    """The reward that `config` names, without any path: a digest of the function's source, or the stored model.

    Imports neither the function nor torch. Raises ConfigError in one line for a module or function that is not there, a template
    that cannot be read, and a folder that is no model or not one with a single output.
    """
    if isinstance(config, ClassifierRewardConfig):
        model = _import(store, config)
        _check_one_output(store.path(model), config.path)
        return Classifier(model=model, template=_template(config.template))
    reserved = [name for name in config.components if name in SCHEMAS["rewards"].names or config.components.count(name) > 1]
    if reserved:
        raise ConfigError(f"reward.components lists {reserved[0]} twice or beside the column of that name: choose another name")
    digest = source_digest("reward.function", config.function)
    return Rule(function=config.function, components=config.components, source_digest=digest)


def _import(store: Store, config: ClassifierRewardConfig) -> Model:
    from wind.models import import_policy

    try:
        return import_policy(store, PolicyConfig(path=config.path, revision=config.revision))
    except ConfigError as error:
        message = str(error)  # written for the policy's own section of the config
        raise ConfigError(f"reward{message.removeprefix('policy')}" if message.startswith("policy") else message) from error


def _check_one_output(folder: Path, name: str) -> None:
    """Raises InputError if the config of a stored model already says that it is no classifier with one output.

    What only the weights can tell, whether the head was trained, is checked when they are loaded.
    """
    config = json.loads((folder / "config.json").read_bytes())
    kinds = config.get("architectures") or []
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise InputError(f"reward.path {name} is a {kinds[0]} without a score head: name a sequence-classification model")
    outputs = len(config.get("id2label") or ()) or config.get("num_labels", 2)  # two where nothing is said, as in transformers
    if outputs != 1:
        raise InputError(f"reward.path {name} has {outputs} outputs: name a sequence-classification model with one")


def _template(template: str) -> str:
    """The text of a Jinja file; "chat" and "none" stand for themselves."""
    if template in ("chat", "none"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f'reward.template {template} cannot be read: name "chat", "none" or a Jinja file ({error})') from error


def _reward_model(spec: RewardsSpec, store: Store, place: Place) -> RewardModel:
    if isinstance(spec.reward, Rule):
        from wind.rewards.rules import RuleReward

        return RuleReward(spec.reward)
    from wind.rewards.classifier import classifier

    return classifier(store.root.resolve(), spec.reward, spec.inference, place.device)


def responses(prompts: pl.DataFrame, generations: pl.DataFrame) -> "Responses":
    """The rows of `generations` with their prompts' messages and answers, in the order of `generations`.

    Raises DatasetError if a prompt is missing.
    """
    from wind.rewards.functions import Responses

    rows = generations.join(prompts, on="prompt_id", how="left", maintain_order="left", validate="m:1")
    lost = rows.filter(pl.col("messages").is_null())
    if len(lost):
        raise DatasetError(f"{len(lost)} responses have no prompt, such as prompt {lost['prompt_id'][0]}: rerun generations")
    columns = ("prompt_id", "sample_index", "messages", "response", "answer")
    return Responses(*(rows[column].to_list() for column in columns))


def _shards(spec: RewardsSpec, store: Store) -> int:
    return len(store.manifest(spec.generations).files)


def _compute(spec: RewardsSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    prompts = store.frame(spec.prompts, ["prompt_id", "messages", "answer"])
    generations = store.frame(spec.generations, ["prompt_id", "sample_index", "response"], shard=index)
    rows = responses(prompts, generations)
    columns = _reward_model(spec, store, place).rewards(rows, progress)
    components = spec.reward.components if isinstance(spec.reward, Rule) else ()
    table = pa.table({"prompt_id": rows.prompt_ids, "sample_index": rows.sample_indexes, **columns})
    return Shard(table, schema=rewards_schema(components))


def _numbers(spec: RewardsSpec, table: pa.Table) -> dict[str, float]:
    """Mean and standard deviation of the reward, and how many of a prompt's rewards are distinct, as a share of all rows."""
    distinct = table.select(["prompt_id", "reward"]).group_by(["prompt_id", "reward"]).aggregate([]).num_rows
    return {
        "mean_reward": pc.mean(table["reward"]).as_py(),
        "std_reward": pc.stddev(table["reward"]).as_py(),
        "distinct_share": distinct / table.num_rows,
    }


STAGE = Stage(name="rewards", spec=RewardsSpec, shards=_shards, compute=_compute, numbers=_numbers)
