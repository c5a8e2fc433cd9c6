"""The config of a run: one YAML file, one frozen record of small closed sections.

A section holds exactly the values that determine a stage's content, because a section is part of that stage's cache key.
What cannot change content (where the store is, how many worker processes, which interpreter) lives in `WorkersConfig` and
in `root`, which no key sees.
"""

import difflib
import math
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import Field, PositiveInt, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from wind.check_config import ChecksConfig, Share
from wind.errors import ConfigError
from wind.objective_config import (
    ObjectiveConfig,
    SelectionConfig,
    WindObjectiveConfig,
    draws_from_anchor,
    least_samples,
    refresh_steps,
    rows_for,
)
from wind.redaction import redacted
from wind.sections import Section

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Function = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Samples = Annotated[int, Field(ge=2)]  # of one prompt: a win rate needs a sibling to win against
YAML_NODES = 10_000  # of a recipe: a few hundred are many
DType = Literal["float32", "bfloat16"]


class PolicyConfig(Section):
    """The base policy."""

    path: str  # local Hugging Face folder, or Hub id
    revision: str | None = None  # Hub revision; a commit is the reproducible choice


class InferenceConfig(Section):
    """How frozen models are run while they sample and score; in every key, since dtype and batch shape move floats."""

    dtype: DType = "float32"
    batch_tokens: int = Field(16384, ge=1)  # padded tokens of one forward batch, at most


class ReferenceConfig(Section):
    """The frozen policy that the update is held to."""

    # The base policy (the paper's pi_ref), the iteration's own start, or an average that moves with the policy: J-BOND's anchor.
    kind: Literal["initial", "previous", "ema"] = "initial"
    rate: Share | None = None  # of an ema: each optimiser step moves the average by this share of the way to the policy

    @model_validator(mode="after")
    def _rate_is_the_average_s(self) -> Self:
        if self.kind == "ema" and self.rate is None:
            raise ValueError("kind ema needs a rate: J-BOND's authors take 0.02, and try 0.01 to 0.1")
        if self.kind != "ema" and self.rate is not None:
            raise ValueError(f"rate is for kind ema, and the kind is {self.kind}: remove the rate")
        return self


class PromptsConfig(Section):
    """Where prompts come from and how they become token ids."""

    source: str  # .jsonl, .parquet, .arrow, a `datasets` folder on disk, or a Hub dataset id
    revision: str | None = None  # of a Hub dataset
    subset: str | None = None  # configuration name of a Hub dataset
    source_split: str | None = None  # split of a `datasets` source
    field: str = "prompt"  # a string, or a list of {role, content}
    answer_field: str = "answer"  # gold answer; rows without it have none
    template: str = "chat"  # "chat": the tokenizer's own; "none": raw text after BOS; or the path of a Jinja file
    eval_fraction: float = Field(0.1, gt=0, lt=1)  # share of prompts held out, chosen by hash of the prompt
    max_prompt_tokens: int = Field(1024, ge=1)  # longer prompts are dropped, with that reason
    limit: int | None = Field(None, ge=2)  # first rows of the source only
    parts: int = Field(1, ge=1)  # disjoint parts of the train split, by hash; iteration t samples part (t - 1) mod parts


class SamplingConfig(Section):
    """How responses are drawn from a policy."""

    backend: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vllm on a GPU where it is installed
    samples_per_prompt: int = Field(8, ge=1)  # N
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: the whole vocabulary
    max_new_tokens: int = Field(64, ge=1)
    shard_prompts: int = Field(64, ge=1)  # prompts of one shard: what a restart loses at most


class CorruptionConfig(Section):
    """Faults planted in a reward, to see what learning from it does to what it should have measured."""

    noise: float = Field(0.0, ge=0)  # standard deviation of Gaussian noise, in units of the reward
    bias: float = 0.0  # units of reward for every character of a response, whatever it says
    sparsity: Share = 0.0  # share of responses whose reward is withheld: 0 in its place
    seed: int = Field(0, ge=0)


class RuleRewardConfig(Section):
    """A Python function over a batch of prompts, responses and gold answers."""

    kind: Literal["rule"]
    function: Function  # module:function (prompts, responses, answers) -> rewards, or a dict with `reward` and the components
    components: tuple[Name, ...] = ()  # further columns the function returns beside `reward`
    corruption: CorruptionConfig | None = None  # faults planted in `reward`


class ClassifierRewardConfig(Section):
    """A sequence-classification reward model with one output."""

    kind: Literal["classifier"]
    path: str
    revision: str | None = None
    template: str = "chat"  # "chat": the reward model's own; "none": prompt and response as a text pair; or a Jinja file
    corruption: CorruptionConfig | None = None  # faults planted in the reward


class PairwiseRewardConfig(Section):
    """A model that compares two responses to a prompt: preferences without a scalar reward."""

    kind: Literal["pairwise"]
    path: str
    revision: str | None = None
    architecture: Literal["auto", "cross_encoder", "pairrm"] = "auto"  # auto: what the model's config.json says
    template: str = "none"  # of a cross-encoder. "none": three texts and separators; "chat": the model's own; or a Jinja file
    max_prompt_tokens: int | None = Field(None, ge=8)  # of PairRM, longer ones are cut; 1224 where not set, as published
    max_response_tokens: int | None = Field(None, ge=8)  # of PairRM, beside what the prompt leaves; 412 where not set


RewardConfig = Annotated[RuleRewardConfig | ClassifierRewardConfig | PairwiseRewardConfig, Field(discriminator="kind")]


class WinRateConfig(Section):
    """Which estimator turns N rewards into N win rates; ties count one half in both."""

    estimator: Literal["unbiased", "self_counting"] = "unbiased"  # leave-one-out, or SPPO's with the self-comparison


class LoraConfig(Section):
    """Low-rank adapters in place of full training: a layer's weight W is frozen, and W + (alpha/rank) B A is trained."""

    rank: int = Field(16, ge=1)  # columns of B and rows of A
    alpha: int = Field(32, ge=1)
    target_modules: tuple[Name, ...] = ()  # linear layers with an adapter, such as q_proj; by default all but the head


class TrainingConfig(Section):
    """One DeepSpeed run over the iteration's generations."""

    epochs: int = Field(1, ge=1)
    batch_prompts: int = Field(16, ge=1)  # prompt groups of one optimiser step, over all ranks
    micro_prompts: int = Field(4, ge=1)  # prompt groups of one forward pass on one rank
    lr: float = Field(1e-5, gt=0)
    intercept_lr: float = Field(0.01, gt=0)  # of the head of a learned intercept, on the same schedule
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_fraction: Share = 0.1
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"  # what ZeRO keeps in the host's memory
    precision: Literal["float32", "bfloat16"] = "float32"
    ranks: int = Field(1, ge=1)  # processes; in the key, because the order of a sum moves floats
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None  # train adapters and publish the merged model; by default every weight is trained
    checkpoint_steps: int = Field(100, ge=1)  # optimiser steps between checkpoints

    @model_validator(mode="after")
    def _shards_what_it_offloads(self) -> Self:
        least = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload {self.offload} needs zero_stage {least} or more: what is not sharded cannot be offloaded")
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
    match: Function | None = None  # module:function(prompts, responses, answers) -> 0/1; by default equal text after strip


class WorkersConfig(Section):
    """Where stages run. Nothing here can change content."""

    executor: Literal["local"] = "local"
    processes: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keep_warm: Literal["auto", "always", "never"] = "auto"  # auto: on CPU; a GPU's memory is given back before training
    python: dict[Literal["transformers", "vllm", "training"], str] = Field(default_factory=dict)  # interpreter of each worker


class RetentionConfig(Section):
    """What `wind gc` leaves of the versions of a run beside their datasets; nothing is removed but by it."""

    weights: Literal["all", "tagged"] | int = "all"  # of which versions; a number: of the last so many and of tagged ones
    optimizer_states: int = Field(0, ge=0)  # last checkpoints of finished trainings, of the last so many versions

    @field_validator("weights", mode="plain")
    @classmethod
    def _is_all_tagged_or_a_count(cls, value: object) -> object:
        if value in ("all", "tagged") or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError(f"it must be 'all', 'tagged', or how many of the last versions, such as 2; it is {_shown(value)}")


class RunConfig(Section):
    """What every flow has beside its own sections; nothing here determines content."""

    run: Name
    root: str = "./store"
    checks: ChecksConfig = ChecksConfig()
    workers: WorkersConfig = WorkersConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="after")
    def _holds_no_credentials(self) -> Self:
        # A config is kept beside its run and with Prefect, in every flow run's parameters.
        for name, text in _texts(self.model_dump(mode="json")):
            if redacted(text) != text:
                raise ValueError(f"{name} holds a credential: leave it out, and set it in the environment, such as HF_TOKEN")
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
    floor_prompts: tuple[PositiveInt, ...] = (4, 8, 16, 32, 64, 128)  # asked per iteration, at `floor_at_samples`
    floor_samples: tuple[Samples, ...] = (2, 4, 8, 16, 32, 64)  # drawn per prompt, at `floor_at_prompts`
    floor_at_prompts: int = Field(32, ge=1)
    floor_at_samples: int = Field(8, ge=2)

    @model_validator(mode="after")
    def _floor_has_slopes(self) -> Self:
        if min(len(set(self.floor_prompts)), len(set(self.floor_samples))) < 3:
            raise ValueError("floor_prompts and floor_samples need three different values each: a slope has a standard error")
        asked = (*self.floor_prompts, self.floor_at_prompts)
        if any(count % self.prompts for count in asked):
            raise ValueError(f"floor_prompts and floor_at_prompts must be multiples of prompts, {self.prompts}")
        return self


class BanditConfig(RunConfig):
    """The contextual-bandit study."""

    run: Name = "bandit"
    seed: int = Field(0, ge=0, lt=2**31)
    bandit: BanditSection = BanditSection()


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
    evaluation: EvaluationConfig = EvaluationConfig()

    def responses_per_prompt(self) -> int:
        """How many responses to a training prompt one iteration draws: fresh ones in every epoch, and of the anchor as many."""
        epochs = 1 if refresh_steps(self.objective) is None else self.training.epochs
        return self.sampling.samples_per_prompt * epochs * (1 + draws_from_anchor(self.objective))

    @model_validator(mode="after")
    def _trains_on_what_it_can(self) -> Self:
        allowed = rows_for(self.objective)
        if self.selection.rows not in ("auto", *allowed):
            given = f"selection.rows is {self.selection.rows!r}"
            raise ValueError(f"{given}, and the objective {self.objective.name} can train on {' or '.join(map(repr, allowed))}")
        return self

    @model_validator(mode="after")
    def _has_siblings(self) -> Self:
        if self.sampling.samples_per_prompt < 2:
            raise ValueError("sampling.samples_per_prompt must be at least 2: a win rate needs a sibling to win against")
        if self.sampling.samples_per_prompt < least_samples(self.objective):
            raise ValueError(
                f"sampling.samples_per_prompt must be at least {least_samples(self.objective)}: "
                f"the objective {self.objective.name} needs as many"
            )
        return self

    @model_validator(mode="after")
    def _moving_reference_is_sampled(self) -> Self:
        if self.reference.kind == "ema" and refresh_steps(self.objective) is None:
            raise ValueError(
                f"reference.kind ema moves during training, and the objective {self.objective.name} compares with stored "
                "log-probabilities: set objective.refresh_steps (bond, jbond, grpo, rloo), or reference.kind previous"
            )
        return self


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> DistillConfig:
    """The recipe in the YAML file at `path`, with each override `section.key=value` put in its place first.

    Values of overrides are YAML. Paths inside a recipe stay as they are given: relative ones are relative to the folder
    the run is started in, not to the recipe. Raises ConfigError, one line that names the file and the dotted setting:
    the first mistake, misspelt keys before all others, and how many more there are.
    """
    try:
        content = _yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the path of a recipe, a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of settings such as `run: demo`, not {_shown(content)}")
    return _validated(DistillConfig, content, overrides, str(path))


def bandit_config(overrides: Sequence[str] = (), **settings: Any) -> BanditConfig:
    """The contextual-bandit study with `settings` and `overrides`, as `load_config` reads them, in place of its defaults."""
    return _validated(BanditConfig, settings, overrides, "--set")


def checks_config(recorded: dict[Any, Any], overrides: Sequence[str] = ()) -> ChecksConfig:
    """The section `checks` as it was `recorded`, with `overrides` such as `checks.max_tie_share=0.5` in its place first."""
    return _validated(RunConfig, {"run": "checks", "checks": recorded}, overrides, "--set").checks


R = TypeVar("R", bound=RunConfig)


def _validated(config: type[R], content: dict[Any, Any], overrides: Sequence[str], where: str) -> R:
    for override in overrides:
        _override(content, override)
    try:
        return config.model_validate(content)
    except ValidationError as error:
        errors = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{where}: {_explained(errors[0], config)}{more}") from error


def alternatives(option: str) -> tuple[str, list[Any]]:
    """The setting and the values of `section.key=V1,V2`; a value that holds commas is written in its own brackets or quotes.

    Raises ConfigError if it lists no value, or one twice.
    """
    name, equals, text = option.partition("=")
    values = _yaml(f"[{text}]", repr(option)) if equals else []
    if not values or not name.strip():
        raise ConfigError(f"{option!r} lists no values: write section.key=V1,V2, for example training.lr=1e-4,3e-4")
    if len({str(value) for value in values}) < len(values):
        raise ConfigError(f"{option!r} lists a value twice: every value is a run of its own")
    return name.strip(), values


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, without silent overwriting: a key may stand in a mapping once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            # Only plain scalars can be settings; the merge key `<<` may repeat by its nature.
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key_node.value} is set twice", problem_mark=key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node) > YAML_NODES:
            raise ConfigError(f"{where} holds more than {YAML_NODES} values once its aliases are put in: write a smaller one")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: {error.problem or error.context}") from error
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply: no setting is") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _size(node: yaml.Node, known: dict[yaml.Node, float] | None = None) -> float:
    """How many values `node` stands for, an alias counted as often as it is used; infinite for one within itself."""
    known = {} if known is None else known
    if node not in known:
        known[node] = math.inf  # while its parts are counted
        items = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        known[node] = 1 + sum(_size(part, known) for part in parts)
    return known[node]


def _override(content: dict[Any, Any], override: str) -> None:
    """Put the value of `section.key=value` into `content`; a section that is not there yet is made."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{override!r} is not an override: write section.key=value, for example training.lr=1e-6")
    section = content
    for depth, part in enumerate(parts[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{override!r}: {'.'.join(parts[:depth])} is {_shown(section)} and has no settings of its own")
    section[parts[-1]] = _yaml(text, repr(override))


def _explained(error: ErrorDetails, config: type[RunConfig]) -> str:
    """One pydantic error as one line: the dotted setting, its value, and what is allowed or was meant."""
    name, section = _setting(error["loc"], config)
    kind, context, shown = error["type"], error.get("ctx", {}), _shown(error["input"])
    if kind == "extra_forbidden":
        return f"{name} is not a setting; {_meant(name, section, config)}"
    if kind == "missing":
        return f"{name} is required and missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = context["discriminator"].strip("'")
        given = f"is {context['tag']!r}" if "tag" in context else "is required and missing"
        tags = " or ".join(repr(_tag(member, tag)) for member in _sections(section.model_fields[name].annotation))
        return f"{name}.{tag} {given}; it must be {tags}"
    if kind == "value_error":
        return f"{name}: {context['error']}" if name else str(context["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name} is {shown}; it must be a mapping of settings"
    if kind == "literal_error":
        return f"{name} is {shown}; it must be {context['expected']}"
    return f"{name} is {shown}; {error['msg'].replace('Input should', 'it must').replace('String should', 'it must')}"


def _setting(location: Sequence[int | str], config: type[Section]) -> tuple[str, type[Section]]:
    """The dotted name of pydantic's `location`, and the section that its last part belongs to."""
    names: list[str] = []
    owner: type[Section] = config
    inside: list[type[Section]] = [config]
    for part in location:
        if len(inside) > 1:  # pydantic names the chosen member of a union by its tag, which is no key of the file
            inside = [member for member in inside if part in {_tag(member, tag) for tag in ("kind", "name")}]
            continue
        if part != "[key]":
            names.append(str(part))
        if inside:
            owner = inside[0]
            field = owner.model_fields.get(str(part))
            inside = _sections(field.annotation) if field else []
    return ".".join(names), owner


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections a field can hold: one, several of a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _tag(section: type[Section], name: str) -> Any:
    """The one value of the field `name` that chooses `section` in a union, if it has one."""
    field = section.model_fields.get(name)
    return next(iter(get_args(field.annotation)), None) if field else None


def _settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings of `section` and below."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for below in _sections(field.annotation):
            yield from _settings(below, f"{prefix}{name}.")


def _meant(name: str, section: type[Section], config: type[Section]) -> str:
    """What somebody who wrote the setting `name` in `section` may have meant, from the surest guess to the whole list."""
    owner, _, leaf = name.rpartition(".")
    leaf = leaf.lower().replace("-", "_")
    words = leaf.split("_")
    prefix = f"{owner}." if owner else ""
    here = list(section.model_fields)
    everywhere = {dotted.rpartition(".")[2]: dotted for dotted in _settings(config)}
    guesses = [
        *(prefix + guess for guess in difflib.get_close_matches(leaf, here, 1, 0.7)),
        *(everywhere[leaf] for _ in range(leaf in everywhere)),
        *(prefix + guess for guess in here if guess == "".join(word[:1] for word in words)),  # learning_rate: lr
        *(prefix + guess for guess in here if set(words) & set(guess.split("_"))),  # batch_size: batch_prompts
        *(everywhere[guess] for guess in difflib.get_close_matches(leaf, everywhere, 1, 0.7)),
    ]
    for guess in guesses:
        if guess != name:  # which another section of the same union may have
            return f"did you mean {guess}?"
    return f"the settings {f'of {owner}' if owner else 'there'} are {', '.join(here)}"


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a dumped config, with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict | list):
        for key, content in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(content, f"{name}.{key}" if name else str(key))


def _shown(value: Any) -> str:
    """A value as a message shows it: short."""
    try:
        text = "empty" if value is None else repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."
