"""Gates: what an iteration has to reach for the run to go on from it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from wind.config.base import Section
from wind.metric_table import metric_named


class GateConfig(Section):
    """Bounds on a metric of every iteration, or an alarm that must not be raised.

    It determines no content by itself: an iteration that does not pass keeps its version, and what
    a rollback trains next has a learning rate of its own in its recipe.
    """

    # such as accuracy or win_rate.held_out.initial
    metric: str | None = None
    # such as reward_hacking, for all that begin so, or reward_hacking.gold.initial
    alarm: str | None = None
    min: float | None = None
    max: float | None = None
    # how much worse than in the best iteration before it
    drop: float | None = Field(None, ge=0)
    # the whole 95% interval has to be beyond the bound
    confident: bool = False
    # rollback: go on from the best version so far, with a smaller learning rate
    action: Literal["stop", "rollback"] = "stop"
    # the metric by which a version is the best; by default this gate's own, or win_rate
    by: str | None = None
    # of the learning rate, at each rollback
    step: float = Field(0.5, gt=0, lt=1)
    # of this gate in one run; then it stops
    max_rollbacks: int = Field(2, ge=1)

    def best_by(self) -> str:
        """Return the metric by which a version is the best."""
        own = self.metric if self.metric and metric_named(self.metric).better else None
        return self.by or own or "win_rate"

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if (self.metric is None) == (self.alarm is None):
            raise ValueError("it names either a metric or an alarm")
        bounds = [name for name in ("min", "max", "drop") if getattr(self, name) is not None]
        if self.metric is not None and not bounds:
            raise ValueError("it has no bound: give min, max or drop")
        if self.alarm is not None and (bounds or self.confident):
            raise ValueError(f"an alarm has no {bounds[0] if bounds else 'interval'}: leave it out")
        return self
