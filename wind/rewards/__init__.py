"""Rewards: one number for each response, from a rule or a classifier, or a row of preferences from
a pairwise model.

One row is one generation as the reward sees it. A *rule* is a user's Python function over a batch
of prompts, responses and gold answers; a *classifier* is a stored sequence-classification model
with one output; both stand behind `RewardModel`. A *pairwise* reward is a stored model that
compares two responses, and its row holds a preference for each other response to the prompt. What
the config names by path enters the store, or the spec as a digest or text, before a stage is
planned: see `resolve_reward`.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol, Self

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from wind.code.functions import source_digest, sources
from wind.config.base import Section
from wind.config.recipe import (
    TODAY,
    ClassifierRewardConfig,
    CorruptionConfig,
    DistillConfig,
    Function,
    InferenceConfig,
    Name,
    PairwiseRewardConfig,
    PolicyConfig,
    RewardConfig,
    RuleRewardConfig,
)
from wind.errors import ConfigError, DatasetError
from wind.files import open_plain, plain_text
from wind.fingerprints import stream_digest
from wind.rewards.folders import check_one_output, pairwise_architecture
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, as_many_as
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.schemas import (
    PROMPT,
    PROMPT_ID,
    SAMPLE,
    SAMPLE_INDEX,
    Column,
    Declaration,
    ForeignKey,
)

if TYPE_CHECKING:
    from wind.rewards.functions import Floats, Responses


# source_maxlength and candidate_maxlength of llm-blender/PairRM's published configuration
PAIRRM_PROMPT_TOKENS = 1224
PAIRRM_RESPONSE_TOKENS = 412
# the columns of `judging_prompts`
JUDGED_BY: Final = ("prompt_id", "messages", "answer", "conversation")


# Columns of a pairwise reward, beside which `reward` is the mean preference over the others.
PREFERENCES = (
    Column(
        "preferences",
        pa.list_(pa.field("item", pa.float64(), nullable=False)),
        "P(this response beats response j) in [0, 1], by the sample_index of the responses to the "
        "prompt, 1/2 at its own place; or by that of the opponents it was scored against",
    ),
    Column("cut_share", pa.float64(), "[0, 1], its comparisons that read a text cut to fit"),
)
DATASET = Declaration(
    row="one response as the reward sees it",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column(
            "reward",
            pa.float64(),
            "higher is better; of a pairwise reward the mean preference over the others",
        ),
    ),
    optional_columns=PREFERENCES,
    has_components=True,
    key=SAMPLE,
    foreign_keys=(
        ForeignKey(SAMPLE, "generations", is_one_to_one=True),
        ForeignKey(PROMPT, "opponents"),
    ),
)


class Rule(Section):
    """A Python function, `module:function`, with the digest of its source."""

    kind: Literal["rule"] = "rule"
    function: Function
    components: tuple[Name, ...] = ()
    source_digest: str
    # sha256 of each source file that the digest covers, by module name
    sources: dict[str, str] = Field(default_factory=dict)
    inputs: tuple[str, ...] = ()  # sha256 of each file that it was said to read
    corruption: CorruptionConfig | None = None


class Classifier(Section):
    """A stored sequence-classification model and how a prompt and a response become its input."""

    kind: Literal["classifier"] = "classifier"
    model: Model
    # "chat": the model's own; "none": prompt and response as a text pair; else Jinja text
    template: str = "chat"
    template_arguments: str = "{}"  # a JSON object
    date: datetime.date = TODAY
    corruption: CorruptionConfig | None = None


class Pairwise(Section):
    """A stored model that compares two responses, and how a prompt and two responses become its
    input.
    """

    kind: Literal["pairwise"] = "pairwise"
    model: Model
    architecture: Literal["cross_encoder", "pairrm"]
    template: str = "none"  # of a cross-encoder: "none", "chat", else Jinja text
    template_arguments: str = "{}"  # a JSON object
    date: datetime.date = TODAY
    max_prompt_tokens: int | None = None  # of PairRM
    max_response_tokens: int | None = None


Reward = Annotated[Rule | Classifier | Pairwise, Field(discriminator="kind")]


class RewardsSpec(Spec):
    """The generations to reward, the reward, and whose responses a pairwise one compares them with:
    by default their siblings.
    """

    prompts: Dataset
    generations: Dataset
    opponents: Dataset | None = None  # other generations for the same prompts
    reward: Reward
    inference: InferenceConfig

    @model_validator(mode="after")
    def _opponents_are_compared(self) -> Self:
        if self.opponents is not None and not isinstance(self.reward, Pairwise):
            raise ValueError(
                f"a {self.reward.kind} rewards each response by itself: only a pairwise reward has opponents"
            )
        return self

    def parents(self) -> dict[str, AnyHandle]:
        """The stored inputs; a reward's model is one of them, as `model`."""
        return super().parents() | (
            {} if isinstance(self.reward, Rule) else {"model": self.reward.model}
        )


class RewardModel(Protocol):
    """What turns responses into numbers."""

    def rewards(self, rows: "Responses", progress: Progress) -> dict[str, "Floats"]:
        """The column `reward` and one per component, a finite float for each of `rows`. Raises
        InputError otherwise.
        """
        ...


def resolve_reward(store: Store, config: RewardConfig) -> Reward:
    """The reward that `config` names, without any path: a digest of the function's source, or the
    stored model.

    Imports neither the function nor torch. Raises ConfigError in one line for a module or function
    that is not there, a template that cannot be read and a folder that is no model, InputError for
    a model whose files show that it is of another kind.
    """
    if isinstance(config, RuleRewardConfig):
        return _rule(config)
    model = _import(store, config)
    if isinstance(config, PairwiseRewardConfig):
        return _pairwise(store, config, model)
    check_one_output(store.path(model), config.path)
    return Classifier(
        model=model,
        template=_template(config.template),
        template_arguments=json.dumps(config.template_arguments, sort_keys=True),
        date=config.date,
        corruption=config.corruption,
    )


def _rule(config: RuleRewardConfig) -> Rule:
    reserved = [
        name
        for name in config.components
        if name in DATASET.with_optional_columns().names or config.components.count(name) > 1
    ]
    if reserved:
        raise ConfigError(
            f"reward.components lists {reserved[0]} twice or beside the column of that name: choose another name"
        )
    return Rule(
        function=config.function,
        components=config.components,
        source_digest=source_digest("reward.function", config.function),
        sources=sources("reward.function", config.function),
        inputs=tuple(_input_digest(path) for path in config.inputs),
        corruption=config.corruption,
    )


def _input_digest(path: str) -> str:
    try:
        with open_plain(Path(path).expanduser()) as file:
            return stream_digest(file)
    except OSError as error:
        raise ConfigError(
            f"reward.inputs names {path}, which cannot be read ({error.strerror}): correct the path"
        ) from error


def _pairwise(store: Store, config: PairwiseRewardConfig, model: Model) -> Pairwise:
    architecture = pairwise_architecture(store.path(model), config.path, config.architecture)
    if architecture == "cross_encoder":
        cut = [
            name
            for name in ("max_prompt_tokens", "max_response_tokens")
            if getattr(config, name) is not None
        ]
        if cut:
            raise ConfigError(
                f"reward.{cut[0]} is PairRM's, and {config.path} is a cross-encoder, which is never cut: remove it"
            )
        return Pairwise(
            model=model,
            architecture=architecture,
            template=_template(config.template),
            template_arguments=json.dumps(config.template_arguments, sort_keys=True),
            date=config.date,
        )
    for name, given in (
        ("template", config.template != "none"),
        ("template_arguments", bool(config.template_arguments)),
    ):
        if given:
            raise ConfigError(
                f"reward.{name} is a cross-encoder's, and {config.path} is a PairRM with a layout of its own: remove it"
            )
    return Pairwise(
        model=model,
        architecture=architecture,
        max_prompt_tokens=config.max_prompt_tokens or PAIRRM_PROMPT_TOKENS,
        max_response_tokens=config.max_response_tokens or PAIRRM_RESPONSE_TOKENS,
    )


def _import(store: Store, config: ClassifierRewardConfig | PairwiseRewardConfig) -> Model:
    from wind.models import import_policy

    try:
        named = PolicyConfig(path=config.path, revision=config.revision)
        return import_policy(store, named, "AutoModelForSequenceClassification")
    except ConfigError as error:
        message = str(error)  # written for the policy's own section of the config
        raise ConfigError(
            f"reward{message.removeprefix('policy')}" if message.startswith("policy") else message
        ) from error


def _template(template: str) -> str:
    """The text of a Jinja file; "chat" and "none" stand for themselves."""
    if template in ("chat", "none"):
        return template
    try:
        return plain_text(Path(template))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'reward.template {template} cannot be read: name "chat", "none" or a Jinja file ({error})'
        ) from error


def reward_model(
    reward: Rule | Classifier,
    inference: InferenceConfig,
    store: Store,
    device: str,
    function_seconds: float | None,
) -> RewardModel:
    """The reward, ready to judge on `device`; a classifier that was loaded last stays loaded.

    One call of a rule's function may take `function_seconds`, or any number if that is None.
    """
    if isinstance(reward, Rule):
        from wind.rewards.rules import RuleReward

        model: RewardModel = RuleReward(reward, device, function_seconds)
    else:
        from wind.rewards.classifier import classifier

        model = classifier(store.address, reward, inference, device)
    if reward.corruption is None:
        return model
    from wind.rewards.corruption import CorruptedReward

    return CorruptedReward(model, reward.corruption)


def judging_prompts(store: Store, prompts: Dataset, *further: str) -> pl.DataFrame:
    """The prompts as their responses are judged by them: the columns of JUDGED_BY and `further`
    ones.

    `conversation` is the JSON of a prompt's messages with all the fields they have, null where role
    and text say all.
    """
    frame = store.frame(prompts, [*JUDGED_BY[:3], "meta", *further])
    field = store.manifest(prompts).computed_by.get("spec", {}).get("field")
    held = (json.loads(meta).get(field) for meta in frame["meta"])
    whole = [
        None if conversation is None else json.dumps(conversation, ensure_ascii=False)
        for conversation in held
    ]
    return frame.drop("meta").with_columns(conversation=pl.Series(whole, dtype=pl.String))


def responses(prompts: pl.DataFrame, generations: pl.DataFrame) -> "Responses":
    """The rows of `generations` with what their prompts are judged by, in the order of
    `generations`.

    Raises DatasetError if a prompt is missing.
    """
    from wind.rewards.functions import Responses

    rows = generations.join(
        prompts, on="prompt_id", how="left", maintain_order="left", validate="m:1"
    )
    lost = rows.filter(pl.col("messages").is_null())
    if len(lost):
        raise DatasetError(
            f"{len(lost)} responses have no prompt, such as prompt {lost['prompt_id'][0]}: rerun generations"
        )
    columns = ("prompt_id", "sample_index", "messages", "response", "answer", "conversation")
    return Responses(*(rows[column].to_list() for column in columns))


def _shards(spec: RewardsSpec, store: Store) -> int:
    return len(store.manifest(spec.generations).files)


def _compute(
    spec: RewardsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    prompts = judging_prompts(store, spec.prompts)
    columns = ["prompt_id", "sample_index", "response"]
    generations = store.frame(spec.generations, columns, shard=index)
    rows = responses(prompts, generations)
    made: Mapping[str, object]
    if isinstance(spec.reward, Pairwise):
        from wind.rewards.pairwise import pairwise_reward

        opponents = None
        if spec.opponents is not None:
            theirs = store.frame(spec.opponents, columns).join(
                generations, on="prompt_id", how="semi", maintain_order="left"
            )
            opponents = responses(prompts, theirs)
        judge = pairwise_reward(store.address, spec.reward, spec.inference, place.device)
        schema, made = DATASET.with_optional_columns(), judge.preferences(rows, opponents, progress)
    else:
        components = spec.reward.components if isinstance(spec.reward, Rule) else ()
        model = reward_model(
            spec.reward, spec.inference, store, place.device, place.function_seconds
        )
        made = model.rewards(rows, progress)
        schema = DATASET.with_components(components)
    return Shard(
        pa.table({"prompt_id": rows.prompt_ids, "sample_index": rows.sample_indexes, **made}),
        schema=schema,
    )


def _numbers(spec: RewardsSpec, table: pa.Table) -> dict[str, float]:
    """Mean and standard deviation of the reward, and how many of a prompt's rewards are distinct,
    as a share of all rows.

    Of a pairwise reward also the share of comparisons that read a text cut to fit.
    """
    distinct = (
        table.select(["prompt_id", "reward"])
        .group_by(["prompt_id", "reward"])
        .aggregate([])
        .num_rows
    )
    cut = (
        {"cut_share": pc.mean(table["cut_share"]).as_py()}
        if isinstance(spec.reward, Pairwise)
        else {}
    )
    return {
        "mean_reward": pc.mean(table["reward"]).as_py(),
        "std_reward": pc.stddev(table["reward"]).as_py(),
        "distinct_share": distinct / table.num_rows,
        **cut,
    }


def function_seconds(config: DistillConfig) -> float | None:
    """Return how many seconds one call of a rule's function may take."""
    return config.reward.timeout if isinstance(config.reward, RuleRewardConfig) else None


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
        expected=as_many_as("generations"),
        related_parents={},
        function_seconds=function_seconds,
    ),
)
