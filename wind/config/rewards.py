"""The reward of a run: one section per kind, chosen by `reward.kind`."""

import datetime
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from wind.config.base import Function, Label, Name, Section, kinds_of
from wind.config.checks import Share
from wind.config.endpoints import ENDPOINT_SETTINGS, EndpointSettings
from wind.config.models import DType
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

    @property
    def gives_preferences(self) -> bool:
        """Whether it compares responses, and gives none of them a reward of its own."""
        return False

    def component_names(self) -> tuple[str, ...]:
        """Return the columns that the reward has besides `reward`."""
        return ()

    def calls_function(self) -> bool:
        """Return true if a user's function is called."""
        return False

    def seconds_per_call(self) -> float | None:
        """Return the time limit for one call of the user's function.

        In seconds; None for no limit.
        """
        return None


def longest_call(sections: Iterable[RewardSection]) -> float | None:
    """Return the longest time limit for one call of a user's function.

    In seconds; None for no limit, or without a function.
    """
    limits = [each.seconds_per_call() for each in sections if each.calls_function()]
    given = [limit for limit in limits if limit is not None]
    return max(given, default=None) if len(given) == len(limits) else None


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

    def calls_function(self) -> bool:
        """Return true."""
        return True

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
    # of this model; by default those of `inference`
    dtype: DType | None = None
    batch_tokens: int | None = Field(None, ge=1)


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
    # of this model; by default those of `inference`
    dtype: DType | None = None
    batch_tokens: int | None = Field(None, ge=1)

    @property
    def gives_preferences(self) -> bool:
        """True."""
        return True


class OverlongRewardConfig(RewardSection):
    """A penalty for responses that come close to a length: 0 to -1."""

    kind: Literal["overlong"]
    # -1 from here on, in tokens of the policy; a truncated response counts as as long
    max_tokens: int = Field(ge=1)
    # the penalty sets in that much before `max_tokens`, and grows linearly
    cache_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _begins_after_the_start(self) -> Self:
        if self.cache_tokens > self.max_tokens:
            raise ValueError(
                f"cache_tokens is {self.cache_tokens} of {self.max_tokens} max_tokens: "
                "the penalty would set in before a response begins"
            )
        return self


class RepetitionRewardConfig(RewardSection):
    """A penalty for repetition: minus the share of repeated n-grams."""

    kind: Literal["repetition"]
    # length of an n-gram
    n: int = Field(3, ge=1)
    # words: what white space separates, in lower case; tokens: those of the policy
    unit: Literal["words", "tokens"] = "words"


class MathRewardConfig(RewardSection):
    """1 for the gold answer in any mathematical form, else 0."""

    kind: Literal["math"]
    # faults planted in the reward
    corruption: CorruptionConfig | None = None

    def component_names(self) -> tuple[str, ...]:
        """Return the column that says where no answer could be read."""
        return ("unparsed",)


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

    @property
    def gives_preferences(self) -> bool:
        """Whether it compares responses."""
        return self.mode == "pairwise"

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


# Every kind that may be part of a mix is listed here, and its counterpart in
# `wind.rewards.kinds.single`.
SingleReward = (
    RuleRewardConfig
    | ClassifierRewardConfig
    | PairwiseRewardConfig
    | JudgeRewardConfig
    | RemoteRewardConfig
    | OverlongRewardConfig
    | RepetitionRewardConfig
    | MathRewardConfig
)
SingleRewardConfig = Annotated[SingleReward, Field(discriminator="kind")]


class MixRewardConfig(RewardSection):
    """Several rewards in one."""

    kind: Literal["mix"]
    # by name; each is a column, as it is before it is weighted
    rewards: dict[Label, SingleRewardConfig] = Field(min_length=1)
    # sum: of all, weighted; min: the least, after weights; standardized: the sum, once each has
    # mean 0 and standard deviation 1 among the responses to a prompt
    combine: Literal["sum", "min", "standardized"] = "sum"
    # by the names of rewards; 1 where none is given
    weights: dict[Label, float] = Field(default_factory=dict)

    @field_validator("rewards")
    @classmethod
    def _are_numbers(cls, rewards: dict[str, SingleReward]) -> dict[str, SingleReward]:
        for name, reward in rewards.items():
            if reward.gives_preferences:
                raise ValueError(
                    f"{name} is {reward.kind} and gives preferences, which do not add up: "
                    "only rewards that give each response a number can be mixed"
                )
        return dict(sorted(rewards.items()))

    @field_validator("weights")
    @classmethod
    def _weights_fit(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        """Return the weights other than 1, which is what a missing one is."""
        for name, weight in weights.items():
            if name not in (names := info.data.get("rewards", weights)):
                raise ValueError(f"there is no reward {name}: the rewards are {', '.join(names)}")
            if info.data.get("combine") == "min" and weight <= 0:
                raise ValueError(
                    f"{name} has the weight {weight:g}, and the least of several rewards needs "
                    "weights above 0"
                )
        return {name: weight for name, weight in sorted(weights.items()) if weight != 1}

    def component_names(self) -> tuple[str, ...]:
        """Return each reward's name, followed by its own components after a dot."""
        return mixed_names({name: each.component_names() for name, each in self.rewards.items()})

    def calls_function(self) -> bool:
        """Return true if one of the rewards calls one."""
        return any(each.calls_function() for each in self.rewards.values())

    def seconds_per_call(self) -> float | None:
        """Return the longest of the rewards."""
        return longest_call(self.rewards.values())


def mixed_names(components: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return the columns of a mix, in their order.

    `components` are those of each reward by its name.
    """
    return tuple(
        column
        for name in sorted(components)
        for column in (name, *(f"{name}.{each}" for each in components[name]))
    )


# A kind that cannot be part of a mix is listed here, and its counterpart in `wind.rewards.kinds`.
RewardConfig = Annotated[SingleReward | MixRewardConfig, Field(discriminator="kind")]
REWARD_SECTIONS: Final[Mapping[str, type[Section]]] = kinds_of(RewardConfig)


class WinRateConfig(Section):
    """The estimator of win rates from N rewards.

    A tie counts one half in both estimators.
    """

    # unbiased: leave-one-out; self_counting: SPPO's, which compares a response with itself too
    estimator: Literal["unbiased", "self_counting"] = "unbiased"
