"""How a policy is evaluated on held-out prompts."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from wind.config.alarms import AlarmsConfig
from wind.config.base import Function, Label, Section
from wind.config.benchmarks import BenchmarkConfig
from wind.config.rewards import RewardConfig


class EvaluationConfig(Section):
    """An evaluation of the new policy against a reference, on held-out prompts."""

    samples_per_prompt: int = Field(4, ge=1)
    against: Literal["reference", "initial"] = "initial"
    # resamples of prompts behind each 95% interval
    bootstrap_samples: int = Field(2000, ge=100)
    # module:function(prompts, responses, answers) -> 0/1; by default text equality after strip
    match: Function | None = None


class PolicyOpponentConfig(Section):
    """A policy of the same run."""

    kind: Literal["policy"]
    # where the run began, where this iteration began, or what regularizes the update
    policy: Literal["initial", "previous", "reference"]


class VersionOpponentConfig(Section):
    """The policy that a version in the same store ended with."""

    beside_content: ClassVar = frozenset({"version"})

    kind: Literal["version"]
    # such as other@3
    version: str


class ModelOpponentConfig(Section):
    """Any model.

    Its own tokenizer renders the held-out prompts for it.
    """

    beside_content: ClassVar = frozenset({"path", "template"})

    kind: Literal["model"]
    # a local Hugging Face folder, or a Hub id
    path: str
    revision: str | None = None
    # "chat": its own; "none"; or the path of a Jinja file; by default that of the prompts
    template: str | None = None


class ResponsesOpponentConfig(Section):
    """Stored responses to the held-out prompts, of whatever origin."""

    beside_content: ClassVar = frozenset({"path"})

    kind: Literal["responses"]
    # .jsonl, .parquet or .arrow with `prompt` (or `instruction`, or `prompt_id`) and `response` (or
    # `output`)
    path: str


# Each enters a key as the dataset or model that it names.
OpponentConfig = Annotated[
    PolicyOpponentConfig | VersionOpponentConfig | ModelOpponentConfig | ResponsesOpponentConfig,
    Field(discriminator="kind"),
]


class EvaluationSection(EvaluationConfig):
    """The evaluation in a recipe, including what does not determine content."""

    beside_content: ClassVar = frozenset({"match_timeout"})

    # seconds for one call of `match`
    match_timeout: float | None = Field(3600.0, gt=0)
    # questions with known answers, by name: gsm8k, hellaswag, mmlu, or any task with its file
    benchmarks: dict[Label, BenchmarkConfig] = Field(default_factory=dict)
    # rewards that never train, by name: a held-out reward model, an LLM judge
    judges: dict[Label, RewardConfig] = Field(default_factory=dict)
    # whom the policy is compared with besides `against`, by name
    opponents: dict[Label, OpponentConfig] = Field(default_factory=dict)
    # whether judges that have a seed judge the policy's responses once more, with the next seed
    repeat_judges: bool = False
    # whether responses are examined for drift and collapse, one more forward pass over them
    health: bool = False
    # tests of whether the policy gets better as its reward rises; {} for all at their defaults
    alarms: AlarmsConfig | None = None

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _are_of_the_harness(cls, benchmarks: Any) -> Any:
        if not isinstance(benchmarks, Mapping):
            return benchmarks
        return {
            name: {"kind": "harness", **(given or {})}
            if given is None or isinstance(given, Mapping)
            else given
            for name, given in benchmarks.items()
        }

    @model_validator(mode="after")
    def _opponents_are_others(self) -> Self:
        if self.against in self.opponents:
            raise ValueError(
                f"opponents.{self.against} has the name of what the policy is compared with "
                "anyway: choose another for this opponent"
            )
        return self

    @model_validator(mode="after")
    def _judges_of_benchmarks_are_named(self) -> Self:
        for name, benchmark in self.benchmarks.items():
            judge = None if benchmark.kind == "harness" else benchmark.judge
            if judge is not None and judge not in self.judges:
                raise ValueError(
                    f"benchmarks.{name}.judge is {judge!r}, and the judges are "
                    f"{', '.join(self.judges) or 'none'}: name one of evaluation.judges"
                )
        return self

    @field_validator("judges")
    @classmethod
    def _names_are_free(cls, judges: dict[str, RewardConfig]) -> dict[str, RewardConfig]:
        for name in ("training", "gold"):
            if name in judges:
                raise ValueError(
                    f"{name} is the name of what is judged anyway: choose another for this judge"
                )
        return judges

    def content(self) -> EvaluationConfig:
        """Return the settings that determine the evaluation's content."""
        return EvaluationConfig.model_validate(
            self.model_dump(include=set(EvaluationConfig.model_fields))
        )
