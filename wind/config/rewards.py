"""The reward of a run: one section per kind, chosen by `reward.kind`."""

import datetime
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from wind.config.base import Function, Name, Section, kinds_of
from wind.config.checks import Share
from wind.config.endpoints import ENDPOINT_SETTINGS, EndpointSettings
from wind.config.templates import TODAY, TemplateArguments

# between the lowest and the highest score of a judge
MOST_SCORES: Final = 100


class CorruptionConfig(Section):
    """Faults planted in a reward.

    They show how learning from it hurts the true objective.
    """

    # standard deviation of Gaussian noise, in units of the reward
    noise: float = Field(0.0, ge=0)
    # units of reward added per character of a response
    bias: float = 0.0
    # share of responses whose reward is withheld: they get 0
    sparsity: Share = 0.0
    seed: int = Field(0, ge=0)


class RewardSection(Section):
    """The base of every kind of reward in a recipe.

    A kind is named by its field `kind`, a Literal with one value.
    """

    def component_names(self) -> tuple[str, ...]:
        """Return the columns that the reward has besides `reward`."""
        return ()

    def seconds_per_call(self) -> float | None:
        """Return the time limit for one call of the user's function.

        In seconds; None for no limit.
        """
        return None


class RuleRewardConfig(RewardSection):
    """A Python function over a batch of prompts, responses and gold answers."""

    beside_content: ClassVar = frozenset({"inputs", "timeout"})

    kind: Literal["rule"]
    # module:function (prompts, responses, answers) -> rewards, or -> a dict with `reward` and the
    # components
    function: Function
    # columns the function returns besides `reward`
    components: tuple[Name, ...] = ()
    # files it reads in a way that cannot be observed, such as through a program that it starts
    inputs: tuple[str, ...] = ()
    # seconds for one call, which judges one shard
    timeout: float | None = Field(3600.0, gt=0)
    # faults planted in `reward`
    corruption: CorruptionConfig | None = None

    def component_names(self) -> tuple[str, ...]:
        """Return `components`."""
        return self.components

    def seconds_per_call(self) -> float | None:
        """Return `timeout`."""
        return self.timeout


class ClassifierRewardConfig(RewardSection):
    """A sequence-classification reward model with one output."""

    beside_content: ClassVar = frozenset({"path"})

    kind: Literal["classifier"]
    # a local Hugging Face folder, or a Hub id
    path: str
    revision: str | None = None
    # "chat": the reward model's own; "none": prompt and response as a text pair; or a Jinja file
    template: str = "chat"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    # what the template sees as today's date
    date: datetime.date = TODAY
    # faults planted in the reward
    corruption: CorruptionConfig | None = None


class PairwiseRewardConfig(RewardSection):
    """A model that compares two responses to a prompt.

    It gives preferences, and no scalar reward.
    """

    beside_content: ClassVar = frozenset({"path"})

    kind: Literal["pairwise"]
    # a local Hugging Face folder, or a Hub id
    path: str
    revision: str | None = None
    # auto: as the model's config.json says
    architecture: Literal["auto", "cross_encoder", "pairrm"] = "auto"
    # cross-encoders only. "none": three texts and separators; "chat": the model's own; or a Jinja
    # file
    template: str = "none"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    # what the template sees as today's date
    date: datetime.date = TODAY
    # PairRM only: longer prompts are cut; by default at 1224, as published
    max_prompt_tokens: int | None = Field(None, ge=8)
    # PairRM only: for a response, besides what the prompt leaves unused; by default 412
    max_response_tokens: int | None = Field(None, ge=8)


class JudgeRewardConfig(RewardSection, EndpointSettings):
    """A language model that judges, behind an OpenAI-compatible endpoint.

    It compares two responses, or gives each a score.
    """

    beside_content: ClassVar = ENDPOINT_SETTINGS | {"input_price", "output_price", "max_cost"}

    kind: Literal["judge"]
    # its id at the endpoint; by default the only one that is there
    model: str | None = None
    # what its weights are, where its id does not say
    revision: str | None = None
    mode: Literal["pairwise", "scalar"] = "pairwise"
    # the path of a Jinja file; by default the one of the mode that comes with this package
    template: str | None = None
    # pairwise only. both: every pair is asked in both orders; one: in an order drawn by `seed`
    orders: Literal["both", "one"] = "both"
    # scalar only: the lowest and the highest score
    scale: tuple[int, int] = (1, 10)
    # what the endpoint lets the model answer. free: anything; choice: nothing but a verdict (vLLM);
    # json_schema: an object with a verdict
    format: Literal["free", "choice", "json_schema"] = "free"
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    # how often a question is asked, each time with another seed, until an answer can be parsed
    attempts: int = Field(3, ge=1, le=100)
    seed: int = Field(0, ge=0, lt=2**31)
    # prices of a million tokens, in any currency, in which `max_cost` is, too
    input_price: float = Field(0.0, ge=0)
    output_price: float = Field(0.0, ge=0)
    # the most that this judge's answers in the store may have cost together
    max_cost: float | None = Field(None, ge=0)

    @field_validator("scale")
    @classmethod
    def _goes_up(cls, scale: tuple[int, int]) -> tuple[int, int]:
        if not scale[0] < scale[1] <= scale[0] + MOST_SCORES:
            raise ValueError(
                f"it must be the lowest and the highest score, at most {MOST_SCORES} apart, "
                "such as [1, 10]"
            )
        return scale

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.max_cost is not None and not self.input_price and not self.output_price:
            raise ValueError("max_cost needs input_price and output_price, per million tokens")
        return self


class RemoteRewardConfig(RewardSection, EndpointSettings):
    """A reward that a server computes."""

    beside_content: ClassVar = ENDPOINT_SETTINGS | {"batch_size"}

    kind: Literal["remote"]
    # wind: prompts as messages, and responses; openrlhf: the texts that OpenRLHF sends
    protocol: Literal["wind", "openrlhf"] = "wind"
    # what the server computes; by default what it says itself, at `url`/identity
    identity: str | None = Field(None, min_length=1)
    # responses of one request
    batch_size: int = Field(32, ge=1)


# Every kind is listed here, and its counterpart in `wind.rewards.kinds`.
RewardConfig = Annotated[
    RuleRewardConfig
    | ClassifierRewardConfig
    | PairwiseRewardConfig
    | JudgeRewardConfig
    | RemoteRewardConfig,
    Field(discriminator="kind"),
]
REWARD_SECTIONS: Final[Mapping[str, type[Section]]] = kinds_of(RewardConfig)


class WinRateConfig(Section):
    """The estimator of win rates from N rewards.

    A tie counts one half in both estimators.
    """

    # unbiased: leave-one-out; self_counting: SPPO's, which compares a response with itself too
    estimator: Literal["unbiased", "self_counting"] = "unbiased"
