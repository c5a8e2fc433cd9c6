"""The reward of a run: one section per kind, chosen by `reward.kind`."""

import datetime
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from wind.config.base import Function, Name, Section, kinds_of
from wind.config.checks import Share
from wind.config.templates import TODAY, TemplateArguments


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


# Every kind is listed here, and its counterpart in `wind.rewards.kinds`.
RewardConfig = Annotated[
    RuleRewardConfig | ClassifierRewardConfig | PairwiseRewardConfig, Field(discriminator="kind")
]
REWARD_SECTIONS: Final[Mapping[str, type[Section]]] = kinds_of(RewardConfig)


class WinRateConfig(Section):
    """The estimator of win rates from N rewards.

    A tie counts one half in both estimators.
    """

    # unbiased: leave-one-out; self_counting: SPPO's, which compares a response with itself too
    estimator: Literal["unbiased", "self_counting"] = "unbiased"
