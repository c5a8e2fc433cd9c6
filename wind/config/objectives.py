"""Config sections of the objectives.

Each holds the parameters of one objective, and the facts that the pipeline needs about it. Its loss
is the function of the same name in `wind.objectives`. Parameters keep the names of each method's
own paper, so one letter may mean different things in two sections: `eta` is a step size in `wind`
and `sppo`, an inverse step size in `inpo`, and the weight of the reward in `rebel`. docs/method.md,
section 4, lists them side by side.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from wind.config.base import Section
from wind.config.objective_facts import ALL, ANY, PAIR, Facts, ObjectiveSection, Refresh, Rows


class SelectionConfig(Section):
    """Which responses to a prompt train, with which label (MATH 2.8)."""

    rows: Rows = "auto"
    # a prompt trains only if its selected rewards differ by more than this; null: always
    margin: float | None = Field(None, ge=0)
    # the estimated win rate, or k/(N + 1), unbiased for rows selected by their rank k
    label: Literal["win_rate", "rank"] = "win_rate"


class WindObjectiveConfig(ObjectiveSection):
    """WIND: regression toward the regularized update (MATH 2.6, 2.7)."""

    name: Literal["wind"] = "wind"
    risk: Literal["squared", "kl", "nce", "nce_noise"] = "squared"
    beta: float = Field(0.1, ge=0)  # weight of the KL divergence from the reference
    eta: float = Field(1.0, gt=0)  # mirror-descent step size
    # the intercept: MATH 2.6 (a) to (e)
    shift: Literal["half", "strict", "centred", "learned", "plug_in"] = "half"
    # predicted win rate below which the KL and NCE risks continue as straight lines
    epsilon: float = Field(0.01, gt=0, lt=0.5)

    @property
    def facts(self) -> Facts:
        """The plug-in intercept needs all rows of a prompt.

        Only the squared risk is quadratic in the log-probabilities.
        """
        is_plug_in = self.shift == "plug_in"
        return Facts(
            rows=ALL if is_plug_in else ANY,
            least_samples=2,
            minimum="quadratic" if self.risk == "squared" else "other",
            compares_all_rows=is_plug_in,
        )

    @property
    def learns_intercept(self) -> bool:
        """True if a head for the intercept is trained as well."""
        return self.shift == "learned"


class SppoObjectiveConfig(ObjectiveSection):
    """SPPO, one response at a time (MATH 4.1)."""

    facts: ClassVar = Facts(rows=ANY, least_samples=2, minimum="quadratic", compares_all_rows=False)

    name: Literal["sppo"]
    eta: float = Field(1000.0, gt=0)  # mirror-descent step size; the authors' value


class SppoPairObjectiveConfig(ObjectiveSection):
    """SPPO on pairs, as in the authors' code (MATH 4.2)."""

    facts: ClassVar = Facts(rows=PAIR, least_samples=2, minimum="quadratic", compares_all_rows=True)

    name: Literal["sppo_pair"]
    eta: float = Field(1000.0, gt=0)  # mirror-descent step size


class InpoObjectiveConfig(ObjectiveSection):
    """INPO (MATH 5.2).

    Its step size, in the sense of `wind`, is 1/(eta - tau). The authors chose eta = 0.005 and
    tau = eta/3.
    """

    facts: ClassVar = Facts(rows=ANY, least_samples=2, minimum="quadratic", compares_all_rows=True)

    name: Literal["inpo"]
    eta: float = Field(0.005, gt=0)  # inverse step size
    tau: float = Field(0.005 / 3, ge=0)  # weight of the KL divergence from the reference

    @model_validator(mode="after")
    def _weights_are_shares(self) -> Self:
        if self.tau > self.eta:
            raise ValueError(
                "tau must not be larger than eta: the current policy's weight is 1 - tau/eta"
            )
        return self


class DpoObjectiveConfig(ObjectiveSection):
    """DPO (MATH 5.1).

    The default beta of 0.1 is TRL's, with which iterative DPO runs.
    """

    facts: ClassVar = Facts(rows=PAIR, least_samples=2, minimum="none", compares_all_rows=True)

    name: Literal["dpo"]
    beta: float = Field(0.1, gt=0)  # inverse temperature
    # share of pairs assumed to be labeled the wrong way around
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)


class IpoObjectiveConfig(ObjectiveSection):
    """IPO; the default tau of 0.1 is TRL's, called beta there."""

    facts: ClassVar = Facts(rows=PAIR, least_samples=2, minimum="quadratic", compares_all_rows=True)

    name: Literal["ipo"]
    tau: float = Field(0.1, gt=0)  # regularization: the target margin is 1/(2 tau) nats


class RebelObjectiveConfig(ObjectiveSection):
    """REBEL.

    The default eta of 1 is that of its code for summarization.
    """

    facts: ClassVar = Facts(rows=ANY, least_samples=2, minimum="quadratic", compares_all_rows=True)

    name: Literal["rebel"]
    eta: float = Field(1.0, gt=0)  # nats per unit of reward


class RaftObjectiveConfig(ObjectiveSection):
    """RAFT: maximum likelihood of the best response."""

    facts: ClassVar = Facts(rows=("best",), least_samples=2, minimum="none", compares_all_rows=True)

    name: Literal["raft"]


class BonbonObjectiveConfig(ObjectiveSection):
    """BoNBoN (MATH 3.2); the default alpha of 0.005 is the authors'."""

    facts: ClassVar = Facts(
        rows=("best_worst",), least_samples=2, minimum="none", compares_all_rows=True
    )

    name: Literal["bonbon"]
    alpha: float = Field(0.005, ge=0, le=1)  # weight of the likelihood of the best response
    # between best and worst: the paper's contrast, or the one in the authors' code
    contrast: Literal["ipo", "dpo"] = "ipo"


class AnchoredObjectiveConfig(ObjectiveSection):
    """Fields shared by BOND and J-BOND, which distill best-of-n of an anchor.

    They learn from samples of the policy and of the anchor. With `refresh_steps` the anchor is the
    reference and both are sampled afresh; without, the anchor is the policy that drew the stored
    samples, and each sample counts as both.
    """

    name: str
    # weight of the backward divergence, the paper's beta
    jeffreys: float = Field(0.5, ge=0, le=1)
    refresh_steps: Refresh = None
    # fresh samples of the anchor per prompt; null: as many as of the policy
    anchor_samples: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _anchor_is_sampled(self) -> Self:
        if self.anchor_samples is not None and self.refresh_steps is None:
            raise ValueError(
                "anchor_samples are drawn afresh, and stored samples are the policy's alone: "
                "set refresh_steps"
            )
        return self

    @property
    def draws_from_anchor(self) -> bool:
        """True if fresh samples come from the reference as well."""
        return self.refresh_steps is not None

    @property
    @abstractmethod
    def least_anchor_samples(self) -> int:
        """The fewest fresh samples of the anchor per prompt, or 0."""

    def anchor_samples_for(self, policy_samples: int) -> int:
        """Return the fresh samples of the anchor per prompt, or 0.

        `policy_samples` is the number of samples of the policy per prompt. 0 means that none are
        drawn.
        """
        return (self.anchor_samples or policy_samples) if self.draws_from_anchor else 0


class BondObjectiveConfig(AnchoredObjectiveConfig):
    """BOND (MATH 1.3).

    The paper's iterative runs use n = 2 or 4.
    """

    name: Literal["bond"]
    # the target is best-of-n of the anchor; at most the number of samples of the anchor
    n: int = Field(2, ge=2)

    @model_validator(mode="after")
    def _anchor_has_n(self) -> Self:
        if self.anchor_samples is not None and self.anchor_samples < self.n:
            raise ValueError(
                f"anchor_samples must be at least n, which is {self.n}: "
                "the best of n is one of them"
            )
        return self

    @property
    def facts(self) -> Facts:
        """Stored samples of the policy are the anchor's too.

        n of them are needed.
        """
        least = 1 if self.draws_from_anchor else self.n
        return Facts(rows=ALL, least_samples=least, minimum="none", compares_all_rows=True)

    @property
    def least_anchor_samples(self) -> int:
        """The fewest fresh samples of the anchor per prompt: n, or 0."""
        return self.n if self.draws_from_anchor else 0


class JbondObjectiveConfig(AnchoredObjectiveConfig):
    """J-BOND (MATH 1.6).

    Algorithm 2 draws one sample of the policy and two of the anchor.
    """

    name: Literal["jbond"]
    # weight of a further KL divergence from the anchor; the paper tries 0 to 2
    gamma: float = Field(0.0, ge=0)

    @property
    def facts(self) -> Facts:
        """A stored sample is compared with two others.

        They stand in for the anchor's.
        """
        least = 1 if self.draws_from_anchor else 3
        return Facts(rows=ALL, least_samples=least, minimum="none", compares_all_rows=True)

    @property
    def least_anchor_samples(self) -> int:
        """The fewest fresh samples of the anchor per prompt: 2, or 0."""
        return 2 if self.draws_from_anchor else 0


class GrpoObjectiveConfig(ObjectiveSection):
    """GRPO.

    0.04 is the KL weight of its paper, 0.2 the clipping range of PPO.
    """

    facts: ClassVar = Facts(rows=ALL, least_samples=2, minimum="none", compares_all_rows=False)

    name: Literal["grpo"]
    epsilon: float = Field(0.2, gt=0, lt=1)  # clipping range of the probability ratio
    beta: float = Field(0.04, ge=0)  # weight of the KL divergence from the reference
    refresh_steps: Refresh = None


class RlooObjectiveConfig(ObjectiveSection):
    """RLOO; the defaults are TRL's."""

    facts: ClassVar = Facts(rows=ALL, least_samples=2, minimum="none", compares_all_rows=False)

    name: Literal["rloo"]
    epsilon: float = Field(0.2, gt=0, lt=1)  # clipping range of the probability ratio
    beta: float = Field(0.05, ge=0)  # weight of the KL divergence from the reference
    refresh_steps: Refresh = None


class QrpoObjectiveConfig(ObjectiveSection):
    """QRPO; the authors tried beta = 0.0003, 0.001 and 0.003."""

    facts: ClassVar = Facts(rows=ALL, least_samples=2, minimum="quadratic", compares_all_rows=True)

    name: Literal["qrpo"]
    beta: float = Field(0.003, gt=0)  # weight of the KL divergence from the policy that sampled


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

# every section by the name of its objective
SECTIONS: Final[Mapping[str, type[ObjectiveSection]]] = {
    get_args(section.model_fields["name"].annotation)[0]: section
    for section in get_args(AnyObjectiveConfig)
}
# those that can train on fresh samples
ON_POLICY: Final = tuple(
    name for name, section in SECTIONS.items() if "refresh_steps" in section.model_fields
)


def _wind_unless_named(value: Any) -> Any:
    return {"name": "wind", **value} if isinstance(value, dict) else value


ObjectiveConfig = Annotated[
    AnyObjectiveConfig, Field(discriminator="name"), BeforeValidator(_wind_unless_named)
]
