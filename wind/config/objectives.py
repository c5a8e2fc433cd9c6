"""The sections that choose an objective and set its parameters; the loss is the function of the
same name in `wind.objectives`.

Parameter names are those of each method's own paper, so that one letter may mean different things
in two sections: `eta` is a step in `wind` and `sppo`, an inverse step in `inpo`, and the weight of
the reward in `rebel`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from wind.config.base import Section

# auto: what the objective's own paper takes
Rows = Literal["auto", "all", "best", "best_worst", "best_random"]
# optimiser steps that a round of fresh samples serves; null: stored samples
Refresh = Annotated[int | None, Field(ge=1)]


class SelectionConfig(Section):
    """Which of a prompt's responses train, and with what label (MATH 2.8)."""

    rows: Rows = "auto"
    # a prompt trains only if the rewards of its rows differ by more; left out: always
    margin: float | None = Field(None, ge=0)
    # as estimated, or k/(N + 1), unbiased for rows chosen by their rank k
    label: Literal["win_rate", "rank"] = "win_rate"


class WindObjectiveConfig(Section):
    """WIND's regression towards the regularised update (MATH 2.6, 2.7)."""

    name: Literal["wind"] = "wind"
    risk: Literal["squared", "kl", "nce", "nce_noise"] = "squared"
    beta: float = Field(0.1, ge=0)  # KL weight towards the reference
    eta: float = Field(1.0, gt=0)  # mirror-descent step size
    # the intercept: MATH 2.6 (a) to (e)
    shift: Literal["half", "strict", "centred", "learned", "plug_in"] = "half"
    # predicted win rate below which the KL and NCE risks go on as straight lines
    epsilon: float = Field(0.01, gt=0, lt=0.5)


class SppoObjectiveConfig(Section):
    """SPPO, response by response (MATH 4.1)."""

    name: Literal["sppo"]
    eta: float = Field(1000.0, gt=0)  # mirror-descent step size; the authors' value


class SppoPairObjectiveConfig(Section):
    """SPPO on pairs, as in the authors' code (MATH 4.2)."""

    name: Literal["sppo_pair"]
    eta: float = Field(1000.0, gt=0)


class InpoObjectiveConfig(Section):
    """INPO (MATH 5.2); its step is 1/(eta - tau) in the sense of `wind`. The authors chose eta =
    0.005, tau = eta/3.
    """

    name: Literal["inpo"]
    eta: float = Field(0.005, gt=0)  # inverse step size
    tau: float = Field(0.005 / 3, ge=0)  # KL weight towards the reference

    @model_validator(mode="after")
    def _weights_are_shares(self) -> Self:
        if self.tau > self.eta:
            raise ValueError(
                "tau must not be larger than eta: the current policy's weight is 1 - tau/eta"
            )
        return self


class DpoObjectiveConfig(Section):
    """DPO; 0.1 is TRL's beta, which iterative DPO runs with (MATH 5.1)."""

    name: Literal["dpo"]
    beta: float = Field(0.1, gt=0)  # inverse temperature
    # share of pairs believed to be the wrong way round
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)


class IpoObjectiveConfig(Section):
    """IPO; 0.1 is TRL's value, called beta there."""

    name: Literal["ipo"]
    tau: float = Field(0.1, gt=0)  # regularisation: the margin aimed at is 1/(2 tau) nats


class RebelObjectiveConfig(Section):
    """REBEL; 1 is the eta of its code for summarisation."""

    name: Literal["rebel"]
    eta: float = Field(1.0, gt=0)  # nats per unit of reward


class RaftObjectiveConfig(Section):
    """RAFT, maximum likelihood of the best response."""

    name: Literal["raft"]


class BonbonObjectiveConfig(Section):
    """BoNBoN (MATH 3.2); 0.005 is the authors' alpha."""

    name: Literal["bonbon"]
    alpha: float = Field(0.005, ge=0, le=1)  # weight of the likelihood of the best response
    # of best and worst: the paper's, or what the authors' code computes
    contrast: Literal["ipo", "dpo"] = "ipo"


class AnchoredObjectiveConfig(Section):
    """What BOND and J-BOND share: both distil best-of-n of an anchor, from its fresh samples and
    the policy's.
    """

    name: str
    jeffreys: float = Field(0.5, ge=0, le=1)  # weight of the backward divergence, the paper's beta
    refresh_steps: Refresh = None
    # fresh samples of the anchor per prompt; null: as many as of the policy
    anchor_samples: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _anchor_is_sampled(self) -> Self:
        if self.anchor_samples is not None and self.refresh_steps is None:
            raise ValueError(
                "anchor_samples are drawn afresh, and stored samples are the policy's alone: set refresh_steps"
            )
        return self


class BondObjectiveConfig(AnchoredObjectiveConfig):
    """BOND (MATH 1.3); the paper's iterative runs take n = 2 or 4."""

    name: Literal["bond"]
    # the policy aims at best-of-n of its anchor; at most as many as there are samples of it
    n: int = Field(2, ge=2)

    @model_validator(mode="after")
    def _anchor_has_n(self) -> Self:
        if self.anchor_samples is not None and self.anchor_samples < self.n:
            raise ValueError(
                f"anchor_samples must be at least n, which is {self.n}: the best of n is one of them"
            )
        return self


class JbondObjectiveConfig(AnchoredObjectiveConfig):
    """J-BOND (MATH 1.6); Algorithm 2 takes one sample of the policy and two of the anchor."""

    name: Literal["jbond"]
    gamma: float = Field(0.0, ge=0)  # further KL weight towards the anchor; the paper tries 0 to 2


class GrpoObjectiveConfig(Section):
    """GRPO; 0.04 is the KL weight of its paper, 0.2 the clipping of PPO."""

    name: Literal["grpo"]
    epsilon: float = Field(0.2, gt=0, lt=1)  # clipping of the ratio
    beta: float = Field(0.04, ge=0)  # KL weight towards the reference
    refresh_steps: Refresh = None


class RlooObjectiveConfig(Section):
    """RLOO; TRL's values."""

    name: Literal["rloo"]
    epsilon: float = Field(0.2, gt=0, lt=1)  # clipping of the ratio
    beta: float = Field(0.05, ge=0)  # KL weight towards the reference
    refresh_steps: Refresh = None


class QrpoObjectiveConfig(Section):
    """QRPO; the authors tried 0.0003, 0.001 and 0.003."""

    name: Literal["qrpo"]
    beta: float = Field(0.003, gt=0)  # KL weight towards the policy that sampled


AnyObjectiveConfig = (
    WindObjectiveConfig
    | SppoObjectiveConfig
    | SppoPairObjectiveConfig
    | InpoObjectiveConfig
    | DpoObjectiveConfig
    | IpoObjectiveConfig
    | RebelObjectiveConfig
    | RaftObjectiveConfig
    | BonbonObjectiveConfig
    | BondObjectiveConfig
    | JbondObjectiveConfig
    | GrpoObjectiveConfig
    | RlooObjectiveConfig
    | QrpoObjectiveConfig
)


def _wind_unless_named(value: Any) -> Any:
    return {"name": "wind", **value} if isinstance(value, dict) else value


ObjectiveConfig = Annotated[
    AnyObjectiveConfig, Field(discriminator="name"), BeforeValidator(_wind_unless_named)
]


ANY: Final[tuple[Rows, ...]] = ("all", "best_worst", "best_random")
PAIR: Final[tuple[Rows, ...]] = ("best_worst", "best_random", "all")
# by objective, what it can be trained on; the first is its paper's
ROWS: Final[Mapping[str, tuple[Rows, ...]]] = {
    "wind": ANY,
    "sppo": ANY,
    "sppo_pair": PAIR,
    "inpo": ANY,
    "dpo": PAIR,
    "ipo": PAIR,
    "rebel": ANY,
    "raft": ("best",),
    "bonbon": ("best_worst",),
}


def rows_for(objective: AnyObjectiveConfig) -> tuple[Rows, ...]:
    """The selections that `objective` can be trained on, that of its own paper first.

    All rows, and nothing else, for those that compare a row with all of its prompt's.
    """
    if isinstance(objective, WindObjectiveConfig) and objective.shift == "plug_in":
        return ("all",)
    return ROWS.get(objective.name, ("all",))


def learns_intercept(objective: AnyObjectiveConfig) -> bool:
    """Whether a head for the intercept is trained beside the policy."""
    return isinstance(objective, WindObjectiveConfig) and objective.shift == "learned"


def least_samples(objective: AnyObjectiveConfig) -> int:
    """How many samples of the policy to a prompt the objective needs at least."""
    if draws_from_anchor(objective):
        return 1
    if isinstance(objective, BondObjectiveConfig):
        return objective.n
    return 3 if isinstance(objective, JbondObjectiveConfig) else 2


def least_anchor_samples(objective: AnyObjectiveConfig) -> int:
    """How many fresh samples of the anchor to a prompt the objective needs at least; 0 where none
    is drawn.
    """
    if not draws_from_anchor(objective):
        return 0
    return objective.n if isinstance(objective, BondObjectiveConfig) else 2


def anchor_samples(objective: AnyObjectiveConfig, policy_samples: int) -> int:
    """How many fresh samples of the anchor go with `policy_samples` of the policy; 0 where none is
    drawn.
    """
    if not isinstance(objective, AnchoredObjectiveConfig) or objective.refresh_steps is None:
        return 0
    return objective.anchor_samples or policy_samples


def refresh_steps(objective: AnyObjectiveConfig) -> int | None:
    """For how many optimiser steps fresh samples serve; None for an objective that learns from
    stored ones.
    """
    steps: int | None = getattr(objective, "refresh_steps", None)
    return steps


def draws_from_anchor(objective: AnyObjectiveConfig) -> bool:
    """Whether fresh samples are drawn from the reference too: BOND and J-BOND distil best-of-n of
    their anchor.
    """
    return isinstance(objective, AnchoredObjectiveConfig) and objective.refresh_steps is not None
