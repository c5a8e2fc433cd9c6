"""The config of a run: one frozen record of small closed sections, read from a recipe by
`wind.config.loading`.

A section holds exactly the values that determine a stage's content, because a section is part of
that stage's cache key. What cannot change content (where the store is, how many worker processes,
which interpreter) lives in `WorkersConfig` and in `root`, which no key sees.
"""

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from wind.config.base import Section, at_defaults
from wind.config.checks import ChecksConfig, Share
from wind.config.objectives import (
    ON_POLICY,
    ObjectiveConfig,
    SelectionConfig,
    WindObjectiveConfig,
)
from wind.errors import shown
from wind.redaction import redacted

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Function = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Samples = Annotated[int, Field(ge=2)]  # of one prompt: a win rate needs a sibling to win against
DType = Literal["float32", "bfloat16"]

# What a template that asks for today's date is told: with the real one, the same row would be
# another prompt tomorrow.
TODAY = datetime.date(2024, 7, 26)

# What a chat template is given anyway, or would be told to its tokenizer instead: the parameters of
# `apply_chat_template`.
TAKEN = (
    *(
        "self",
        "conversation",
        "conversations",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
    ),
    *(
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
    ),
    *(
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "strftime_now",
        "response_a",
        "response_b",
    ),
)


def _for_a_template(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in arguments:
        if name in TAKEN:
            raise ValueError(f"{name} is no argument of a template but of what calls it: remove it")
    json.dumps(arguments, allow_nan=False)
    return arguments


TemplateArguments = Annotated[dict[str, JsonValue], AfterValidator(_for_a_template)]
Attention = Literal[
    "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
]


class PolicyConfig(Section):
    """The base policy."""

    path: str  # local Hugging Face folder, or Hub id
    revision: str | None = None  # Hub revision; a commit is the reproducible choice


class InferenceConfig(Section):
    """How frozen models are run while they sample and score; in every key, since dtype and batch
    shape move floats.
    """

    dtype: DType = "float32"
    # as transformers names them; auto: its own choice, or eager where only that is right
    attention: Attention = "auto"
    batch_tokens: int = Field(16384, ge=1)  # padded tokens of one forward batch, at most


class ReferenceConfig(Section):
    """The frozen policy that the update is held to."""

    # The base policy (the paper's pi_ref), the iteration's own start, or an average that moves with
    # the policy: J-BOND's anchor.
    kind: Literal["initial", "previous", "ema"] = "initial"
    # of an ema: each optimiser step moves the average by this share of the way to the policy
    rate: Share | None = None

    @model_validator(mode="after")
    def _rate_is_the_average_s(self) -> Self:
        if self.kind == "ema" and self.rate is None:
            raise ValueError(
                "kind ema needs a rate: J-BOND's authors take 0.02, and try 0.01 to 0.1"
            )
        if self.kind != "ema" and self.rate is not None:
            raise ValueError(f"rate is for kind ema, and the kind is {self.kind}: remove the rate")
        return self


class PromptsConfig(Section):
    """Where prompts come from and how they become token ids."""

    source: str  # .jsonl, .parquet, .arrow, a `datasets` folder on disk, or a Hub dataset id
    revision: str | None = None  # of a Hub dataset
    subset: str | None = None  # configuration name of a Hub dataset
    source_split: str | None = None  # of a folder or a Hub dataset; needed where there are several
    # a string, or a list of messages: {role, content, ...}, or ShareGPT's {from, value}
    field: str = "prompt"
    answer_field: str = "answer"  # gold answer; rows without it have none
    # "chat": the tokenizer's own; "none": raw text; or the path of a Jinja file
    template: str = "chat"
    # for the template, such as enable_thinking: false
    template_arguments: TemplateArguments = Field(default_factory=dict)
    date: datetime.date = TODAY  # what the template is told where it asks for today's
    system: str | None = None  # system message for rows that have none of their own; may be empty
    # last_user: what follows the user's last message is cut
    until: Literal["end", "last_user"] = "end"
    # share of prompts held out, chosen by hash of the prompt
    eval_fraction: float = Field(0.1, gt=0, lt=1)
    # rows with the same value of this field are on the same side: the hash is of the value
    group_field: str | None = None
    max_prompt_tokens: int = Field(1024, ge=1)  # longer prompts are dropped, with that reason
    limit: int | None = Field(None, ge=2)  # first rows of the source only
    # disjoint parts of the train split, by hash; iteration t samples part (t - 1) mod parts
    parts: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        given = {
            "system": self.system is not None,
            "template_arguments": bool(self.template_arguments),
        }
        for name in given:
            if given[name] and self.template == "none":
                raise ValueError(
                    f"{name} is for a chat template, and template is none: remove one of them"
                )
        if self.group_field == self.field:
            raise ValueError(
                f"group_field is the prompt itself, {self.field!r}: name a field that several prompts share"
            )
        return self


class SamplingConfig(Section):
    """How responses are drawn from a policy."""

    # auto: vllm on a GPU where it is installed
    backend: Literal["auto", "transformers", "vllm"] = "auto"
    samples_per_prompt: int = Field(8, ge=1)  # N
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: the whole vocabulary
    max_new_tokens: int = Field(64, ge=1)
    shard_prompts: int = Field(64, ge=1)  # prompts of one shard: what a restart loses at most


class CorruptionConfig(Section):
    """Faults planted in a reward, to see what learning from it does to what it should have
    measured.
    """

    noise: float = Field(0.0, ge=0)  # standard deviation of Gaussian noise, in units of the reward
    bias: float = 0.0  # units of reward for every character of a response, whatever it says
    sparsity: Share = 0.0  # share of responses whose reward is withheld: 0 in its place
    seed: int = Field(0, ge=0)


class RuleRewardConfig(Section):
    """A Python function over a batch of prompts, responses and gold answers."""

    kind: Literal["rule"]
    # module:function (prompts, responses, answers) -> rewards, or a dict with `reward` and the
    # components
    function: Function
    components: tuple[Name, ...] = ()  # further columns the function returns beside `reward`
    # files that it reads by a road that cannot be observed, such as a program that it starts
    inputs: tuple[str, ...] = ()
    # seconds for one call, that is one shard; in no key
    timeout: float | None = Field(3600.0, gt=0)
    corruption: CorruptionConfig | None = None  # faults planted in `reward`


class ClassifierRewardConfig(Section):
    """A sequence-classification reward model with one output."""

    kind: Literal["classifier"]
    path: str
    revision: str | None = None
    # "chat": the reward model's own; "none": prompt and response as a text pair; or a Jinja file
    template: str = "chat"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    date: datetime.date = TODAY  # what the template is told where it asks for today's
    corruption: CorruptionConfig | None = None  # faults planted in the reward


class PairwiseRewardConfig(Section):
    """A model that compares two responses to a prompt: preferences without a scalar reward."""

    kind: Literal["pairwise"]
    path: str
    revision: str | None = None
    # auto: what the model's config.json says
    architecture: Literal["auto", "cross_encoder", "pairrm"] = "auto"
    # of a cross-encoder. "none": three texts and separators; "chat": the model's own; or a Jinja
    # file
    template: str = "none"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    date: datetime.date = TODAY  # what the template is told where it asks for today's
    # of PairRM, longer ones are cut; 1224 where not set, as published
    max_prompt_tokens: int | None = Field(None, ge=8)
    # of PairRM, beside what the prompt leaves; 412 where not set
    max_response_tokens: int | None = Field(None, ge=8)


RewardConfig = Annotated[
    RuleRewardConfig | ClassifierRewardConfig | PairwiseRewardConfig, Field(discriminator="kind")
]


class WinRateConfig(Section):
    """Which estimator turns N rewards into N win rates; ties count one half in both."""

    # leave-one-out, or SPPO's with the self-comparison
    estimator: Literal["unbiased", "self_counting"] = "unbiased"


class LoraConfig(Section):
    """Low-rank adapters in place of full training: a layer's weight W is frozen, and W +
    (alpha/rank) B A is trained.
    """

    rank: int = Field(16, ge=1)  # columns of B and rows of A
    alpha: int = Field(32, ge=1)
    # linear layers with an adapter, such as q_proj; by default all but the head
    target_modules: tuple[Name, ...] = ()


class TrainingConfig(Section):
    """One DeepSpeed run over the iteration's generations."""

    epochs: int = Field(1, ge=1)
    batch_prompts: int = Field(16, ge=1)  # prompt groups of one optimiser step, over all ranks
    micro_prompts: int = Field(4, ge=1)  # prompt groups of one forward pass on one rank
    lr: float = Field(1e-5, gt=0)
    # of the head of a learned intercept, on the same schedule
    intercept_lr: float = Field(0.01, gt=0)
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_fraction: Share = 0.1
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    # what ZeRO keeps in the host's memory
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    attention: Attention = "auto"  # as inference.attention
    ranks: int = Field(1, ge=1)  # processes; in the key, because the order of a sum moves floats
    gradient_checkpointing: bool = False
    # train adapters and publish the merged model; by default every weight is trained
    lora: LoraConfig | None = None
    checkpoint_steps: int = Field(100, ge=1)  # optimiser steps between checkpoints

    @model_validator(mode="after")
    def _shards_what_it_offloads(self) -> Self:
        least = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload {self.offload} needs zero_stage {least} or more: what is not sharded cannot be offloaded"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_prompts % (self.micro_prompts * self.ranks):
            raise ValueError("batch_prompts must be a multiple of micro_prompts * ranks")
        return self


class EvaluationConfig(Section):
    """Held-out prompts, the new policy against a reference."""

    samples_per_prompt: int = Field(4, ge=1)
    against: Literal["reference", "initial"] = "initial"
    bootstrap_samples: int = Field(2000, ge=100)  # resamples of prompts behind each 95% interval
    # module:function(prompts, responses, answers) -> 0/1; by default equal text after strip
    match: Function | None = None


class EvaluationSection(EvaluationConfig):
    """The evaluation as a recipe has it: with what cannot change content."""

    match_timeout: float | None = Field(3600.0, gt=0)  # seconds for one call of `match`

    def content(self) -> EvaluationConfig:
        """What determines the evaluation's content."""
        return EvaluationConfig.model_validate(
            self.model_dump(include=set(EvaluationConfig.model_fields))
        )


class WorkersConfig(Section):
    """Where stages run. Nothing here can change content."""

    executor: Literal["local"] = "local"
    processes: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # auto: on CPU; a GPU's memory is given back before training
    keep_warm: Literal["auto", "always", "never"] = "auto"
    # interpreter of each worker
    python: dict[Literal["transformers", "vllm", "training"], str] = Field(default_factory=dict)


class RetentionConfig(Section):
    """What `wind gc` leaves of the versions of a run beside their datasets; nothing is removed but
    by it.
    """

    # of which versions; a number: of the last so many and of tagged ones
    weights: Literal["all", "tagged"] | int = "all"
    # last checkpoints of finished trainings, of the last so many versions
    optimizer_states: int = Field(0, ge=0)

    @field_validator("weights", mode="plain")
    @classmethod
    def _is_all_tagged_or_a_count(cls, value: object) -> object:
        if value in ("all", "tagged") or (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1
        ):
            return value
        raise ValueError(
            f"it must be 'all', 'tagged', or how many of the last versions, such as 2; it is {shown(value)}"
        )


class CacheConfig(Section):
    """What counts as a hit beside what is always compared."""

    # of other versions: named once, computed anew, or taken in silence
    packages: Literal["warn", "key", "ignore"] = "warn"


class RunConfig(Section):
    """What every flow has beside its own sections; nothing here determines content."""

    run: Name
    root: str = "./store"
    checks: ChecksConfig = ChecksConfig()
    workers: WorkersConfig = WorkersConfig()
    cache: CacheConfig = CacheConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="after")
    def _holds_no_credentials(self) -> Self:
        # A config is kept beside its run and with Prefect, in every flow run's parameters.
        for name, text in _texts(self.model_dump(mode="json")):
            if redacted(text) != text:
                raise ValueError(
                    f"{name} holds a credential: leave it out, and set it in the environment, such as HF_TOKEN"
                )
        return self


class BanditSection(Section):
    """The sizes of the contextual-bandit study, `wind.bandit`."""

    prompts: int = Field(4, ge=1)  # of each instance
    responses: int = Field(10, ge=3)  # to each prompt
    beta: float = Field(0.25, gt=0)  # KL weight towards the reference
    eta: float = Field(1.0, gt=0)  # step; up to 4 beta linear convergence is proved
    iterations: int = Field(16, ge=4)  # of sampled algorithms; exact ones run three times as long
    samples: tuple[Samples, ...] = (4, 8, 16)  # responses drawn per prompt, each a study of its own
    visits: int = Field(4, ge=1)  # how often an iteration draws them for each prompt
    repeats: int = Field(2, ge=1)  # repetitions with other draws
    floor_responses: int = Field(6, ge=3)
    floor_iterations: int = Field(24, ge=3)
    floor_repeats: int = Field(6, ge=1)
    # asked per iteration, at `floor_at_samples`
    floor_prompts: tuple[PositiveInt, ...] = (4, 8, 16, 32, 64, 128)
    # drawn per prompt, at `floor_at_prompts`
    floor_samples: tuple[Samples, ...] = (2, 4, 8, 16, 32, 64)
    floor_at_prompts: int = Field(32, ge=1)
    floor_at_samples: int = Field(8, ge=2)

    @model_validator(mode="after")
    def _floor_has_slopes(self) -> Self:
        if min(len(set(self.floor_prompts)), len(set(self.floor_samples))) < 3:
            raise ValueError(
                "floor_prompts and floor_samples need three different values each: a slope has a standard error"
            )
        asked = (*self.floor_prompts, self.floor_at_prompts)
        if any(count % self.prompts for count in asked):
            raise ValueError(
                f"floor_prompts and floor_at_prompts must be multiples of prompts, {self.prompts}"
            )
        return self


class BanditConfig(RunConfig):
    """The contextual-bandit study."""

    run: Name = "bandit"
    seed: int = Field(0, ge=0, lt=2**31)
    bandit: BanditSection = BanditSection()


# Settings that determine no content by themselves: files and models enter by fingerprint, through
# the datasets.
BESIDE_CONTENT = (
    *(
        ("policy", "path"),
        ("prompts", "source"),
        ("prompts", "template"),
        ("reward", "path"),
        ("reward", "inputs"),
    ),
    *(("reward", "timeout"), ("evaluation", "match_timeout")),
)


class DistillConfig(RunConfig):
    """One recipe: the whole of a YAML file under `configs/`."""

    policy: PolicyConfig
    prompts: PromptsConfig
    reward: RewardConfig
    seed: int = Field(0, ge=0, lt=2**31)
    iterations: int = Field(3, ge=1)
    reference: ReferenceConfig = ReferenceConfig()
    inference: InferenceConfig = InferenceConfig()
    sampling: SamplingConfig = SamplingConfig()
    win_rate: WinRateConfig = WinRateConfig()
    selection: SelectionConfig = SelectionConfig()
    objective: ObjectiveConfig = WindObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationSection = EvaluationSection()

    def recipe(self) -> dict[str, Any]:
        """What determines content: all but paths, names, the iteration count, thresholds, timeouts
        and how it is run.
        """
        fields = self.model_dump(
            mode="json",
            exclude={"run", "root", "iterations", "checks", "workers", "cache", "retention"},
        )
        for section, name in BESIDE_CONTENT:
            fields[section].pop(name, None)
        return fields

    @classmethod
    def of_recipe(cls, chosen: Mapping[str, Any]) -> Self:
        """The config of what a recorded recipe `chose`, with this release's defaults and no paths.
        Raises ValidationError.
        """
        fields = {"run": "recorded", **chosen}
        for section, name in (("policy", "path"), ("prompts", "source"), ("reward", "path")):
            given = chosen.get(section, {})
            # the one section that has no path
            if isinstance(given, Mapping) and given.get("kind") != "rule":
                fields[section] = {name: "", **given}
        return cls.model_validate(fields)

    def defaults(self) -> tuple[str, ...]:
        """The dotted names of what the recipe has at its defaults; a version's id leaves them out."""
        return tuple(sorted(at_defaults(self, self.recipe())))

    def responses_per_prompt(self) -> int:
        """How many responses to a training prompt one iteration draws: fresh ones in every epoch,
        the anchor's too.
        """
        epochs = 1 if self.objective.steps_per_refresh is None else self.training.epochs
        samples = self.sampling.samples_per_prompt
        return epochs * (samples + self.objective.anchor_samples_for(samples))

    @model_validator(mode="after")
    def _trains_on_what_it_can(self) -> Self:
        allowed = self.objective.facts.rows
        if self.selection.rows not in ("auto", *allowed):
            given = f"selection.rows is {self.selection.rows!r}"
            raise ValueError(
                f"{given}, and the objective {self.objective.name} can train on {' or '.join(map(repr, allowed))}"
            )
        return self

    @model_validator(mode="after")
    def _has_siblings(self) -> Self:
        samples, least, name = (
            self.sampling.samples_per_prompt,
            self.objective.facts.least_samples,
            self.objective.name,
        )
        if samples < least:
            why = (
                "a win rate needs a sibling to win against"
                if samples == 1
                else f"the objective {name} needs as many"
            )
            raise ValueError(f"sampling.samples_per_prompt must be at least {least}: {why}")
        if self.objective.anchor_samples_for(samples) < (
            least := self.objective.least_anchor_samples
        ):
            raise ValueError(
                f"sampling.samples_per_prompt must be at least {least}: the objective {name} draws as many samples of its anchor "
                f"as of the policy, and needs {least} of it; or set objective.anchor_samples"
            )
        return self

    @model_validator(mode="after")
    def _moving_reference_is_sampled(self) -> Self:
        if self.reference.kind == "ema" and self.objective.steps_per_refresh is None:
            raise ValueError(
                f"reference.kind ema moves during training, and the objective {self.objective.name} compares with stored "
                f"log-probabilities: set objective.refresh_steps ({', '.join(ON_POLICY)}), "
                "or reference.kind previous"
            )
        return self


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a dumped config, with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict | list):
        for key, content in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(content, f"{name}.{key}" if name else str(key))
