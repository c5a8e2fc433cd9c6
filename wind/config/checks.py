"""The config of the data checks: thresholds, drift, and expectations of the user's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from wind.config.base import Section

Share = Annotated[float, Field(ge=0, le=1)]


class Bounds(Section):
    """By how much a quantity may move, up or down, from one iteration to the next."""

    warn: float | None = Field(None, ge=0)  # further: a warning
    fail: float | None = Field(None, ge=0)  # further: the check fails, and the run ends


class DriftConfig(Section):
    """Bounds on what moves between an iteration's dataset and the one before it; by default large
    moves warn, none fails.

    A mean moves in standard deviations (pooled over both datasets), a distribution by its
    Kolmogorov-Smirnov distance in [0, 1], a share by its difference, the KL by nats.
    """

    mean_reward: Bounds = Bounds(warn=1.0)
    reward_distribution: Bounds = Bounds(warn=0.5)
    mean_response_tokens: Bounds = Bounds(warn=1.0)
    response_tokens_distribution: Bounds = Bounds(warn=0.5)
    truncated_share: Bounds = Bounds(warn=0.2)  # of responses that reached max_new_tokens
    # of responses that a sibling before them already gave
    duplicate_share: Bounds = Bounds(warn=0.2)
    tie_share: Bounds = Bounds(warn=0.2)  # of comparisons with equal rewards
    kl: Bounds = Bounds(warn=10.0)  # of the trained policy to the reference

    @model_validator(mode="before")
    @classmethod
    def _keeps_the_other_bound(cls, given: Any) -> Any:
        """To set one bound of a quantity leaves its other bound as it was."""
        if not isinstance(given, Mapping):
            return given
        defaults = {name: field.default.model_dump() for name, field in cls.model_fields.items()}
        return {
            name: defaults[name] | value
            if name in defaults and isinstance(value, Mapping)
            else value
            for name, value in given.items()
        }


class ExtraExpectation(Section):
    """An expectation of Great Expectations with its arguments."""

    model_config = ConfigDict(extra="allow")  # its arguments

    expectation: str  # such as ExpectColumnMeanToBeBetween
    severity: Literal["warning", "critical"] = "critical"  # critical: a failure ends the run

    def arguments(self) -> dict[str, Any]:
        """What the expectation is made with."""
        return {**(self.model_extra or {}), "severity": self.severity}


class ChecksConfig(Section):
    """Thresholds of the data checks; changing one re-checks, and recomputes nothing."""

    max_empty_share: Share = 0.05
    max_truncated_share: Share = 1.0
    min_mean_response_tokens: float = Field(1.5, ge=0)
    max_tie_share: Share = 0.999
    drift: DriftConfig = DriftConfig()
    extra: dict[str, tuple[ExtraExpectation, ...]] = Field(default_factory=dict)  # by dataset
    files: tuple[str, ...] = ()  # Python files with a function per dataset: its own expectations
