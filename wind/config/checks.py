"""The config of the data checks.

Thresholds, bounds on drift, and the user's own expectations.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from wind.config.base import Section

Share = Annotated[float, Field(ge=0, le=1)]


class Bounds(Section):
    """How far a quantity may be from where it should be, up or down."""

    # beyond it: a warning
    warn: float | None = Field(None, ge=0)
    # beyond it: the check fails, and the run ends
    fail: float | None = Field(None, ge=0)


class BoundedSection(Section):
    """A section in which some settings are bounds with defaults."""

    @model_validator(mode="before")
    @classmethod
    def _keeps_the_other_bound(cls, given: Any) -> Any:
        """Keep a bound's default if only the other is set."""
        if not isinstance(given, Mapping):
            return given
        defaults = {
            name: field.default.model_dump()
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Bounds)
        }
        return {
            name: {**defaults[name], **value}
            if name in defaults and isinstance(value, Mapping)
            else value
            for name, value in given.items()
        }


class DriftConfig(BoundedSection):
    """Bounds on the change between an iteration's dataset and the previous one.

    By default large changes warn, and none fails. A mean is measured in standard deviations (pooled
    over both datasets), a distribution by its Kolmogorov-Smirnov distance in [0, 1], a share by its
    difference, the KL in nats.
    """

    mean_reward: Bounds = Bounds(warn=1.0)
    reward_distribution: Bounds = Bounds(warn=0.5)
    mean_response_tokens: Bounds = Bounds(warn=1.0)
    response_tokens_distribution: Bounds = Bounds(warn=0.5)
    # of responses that reached max_new_tokens
    truncated_share: Bounds = Bounds(warn=0.2)
    # of responses equal to an earlier sibling
    duplicate_share: Bounds = Bounds(warn=0.2)
    # of comparisons with equal rewards
    tie_share: Bounds = Bounds(warn=0.2)
    # from the trained policy to the reference
    kl: Bounds = Bounds(warn=10.0)


class ExtraExpectation(Section):
    """An expectation of Great Expectations with its arguments."""

    # its arguments
    model_config = ConfigDict(extra="allow")

    # such as ExpectColumnMeanToBeBetween
    expectation: str
    # critical: a failure ends the run
    severity: Literal["warning", "critical"] = "critical"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the expectation."""
        return {**(self.model_extra or {}), "severity": self.severity}


class ChecksConfig(BoundedSection):
    """Thresholds of the data checks; changing one repeats checks but recomputes nothing."""

    max_empty_share: Share = 0.05
    max_truncated_share: Share = 1.0
    min_mean_response_tokens: float = Field(1.5, ge=0)
    max_tie_share: Share = 0.999
    # mean distance of the trainer's log-probability of a response from the sampler's, nats per token
    logp_gap: Bounds = Bounds(warn=0.02, fail=0.1)
    # of a judge's comparisons, those without a verdict that could be parsed
    max_unparsed_share: Share = 0.05
    drift: DriftConfig = DriftConfig()
    # the user's own expectations, by dataset
    extra: dict[str, tuple[ExtraExpectation, ...]] = Field(default_factory=dict)
    # Python files with a function per dataset, which returns expectations for it
    files: tuple[str, ...] = ()
