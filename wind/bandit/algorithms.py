"""What is compared: exact updates, and objectives fitted to samples, each under the name it has in
the dataset `bandit`.

Every algorithm starts at the reference. The solution pi* is that of the regularised game at `beta`;
INPO, Nash-MD and IPO get the parameters under which they aim at it, the others the ones that move
about as far in an iteration as WIND at the step `eta`. SPPO, REBEL, QRPO, RAFT, BoNBoN, BOND and
J-BOND have no reference to hold them: what they tend to is the best response.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from wind.bandit.instances import Instance
from wind.bandit.sampling import Draw, descended, minimised, solved
from wind.config.objectives import (
    AnyObjectiveConfig,
    BonbonObjectiveConfig,
    BondObjectiveConfig,
    DpoObjectiveConfig,
    GrpoObjectiveConfig,
    InpoObjectiveConfig,
    IpoObjectiveConfig,
    JbondObjectiveConfig,
    QrpoObjectiveConfig,
    RaftObjectiveConfig,
    RebelObjectiveConfig,
    RlooObjectiveConfig,
    Rows,
    SppoObjectiveConfig,
    SppoPairObjectiveConfig,
    WindObjectiveConfig,
    rows_for,
)
from wind.games import (
    inpo_update,
    log_win_rate_update,
    mixed_best_of_n,
    mixing_strengths,
    nash_md_update,
    sppo_update,
    wind_update,
)
from wind.objectives import loss_for

BEST_OF = 2
# beta = 1.25 in the log-win-rate game, whose solution is then about best of 5
MIXING = {"n": 2.0, "a1": 0.2, "a2": 0.25}
QUADRATIC = ("sppo", "sppo_pair", "inpo", "ipo", "rebel", "qrpo")  # in the log-probabilities
COMPARES_ALL_ROWS = (
    "sppo_pair",
    "inpo",
    "dpo",
    "ipo",
    "rebel",
    "raft",
    "bonbon",
    "bond",
    "jbond",
    "qrpo",
)


# (policy, 1-based iteration) -> policy, seeing all responses
Update = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Sampled:
    """An objective of `wind.objectives`, the rows it is fitted to and how win rates are estimated
    for it.
    """

    objective: AnyObjectiveConfig
    self_counting: bool = False
    rows: Rows = "auto"

    @property
    def in_blocks(self) -> bool:
        """Whether the objective compares all rows of its batch with all, so that a smaller batch is
        a cheaper one.
        """
        return self.objective.name in COMPARES_ALL_ROWS

    @property
    def selected(self) -> Rows:
        """The rows of each group: as given, or those of the objective's own paper."""
        return rows_for(self.objective)[0] if self.rows == "auto" else self.rows

    def fit(self, drawn: Draw, logp_C_Y: torch.Tensor) -> torch.Tensor:
        """The next policy: the minimiser where there is one, otherwise where some steps of descent
        lead.
        """
        loss = loss_for(self.objective)
        if isinstance(self.objective, WindObjectiveConfig):
            return (solved if self.objective.risk == "squared" else minimised)(
                loss, drawn, logp_C_Y
            )
        return (solved if self.objective.name in QUADRATIC else descended)(loss, drawn, logp_C_Y)


def exact_updates(instance: Instance, beta: float, eta: float) -> Mapping[str, Update]:
    """The exact algorithms by name; those of best of n where the responses have an order.

    `wind` has the step `eta`; `wind_slow` the step beta, the end of the range recalled from the
    paper; `wind_fast` ten times `eta`, outside of all that is proved; `best_response` an infinite
    one. `inpo` is the same update with the schedule of its theorem 4, the inverse step beta (t + 2)
    / 2 for t = 0, 1, ... (MATH 5.2).
    """
    ref, preferences, order = instance.ref, instance.preferences, instance.order
    strengths = mixing_strengths(**MIXING)

    def wind(step: float) -> Update:
        return lambda logp, t: wind_update(logp, ref, preferences, beta=beta, eta=step)

    updates: dict[str, Update] = {
        "wind": wind(eta),
        "wind_slow": wind(beta),
        "wind_fast": wind(10 * eta),
        "best_response": wind(torch.inf),
        "sppo": lambda logp, t: sppo_update(logp, preferences, eta=eta),
        "inpo": lambda logp, t: inpo_update(
            logp, ref, preferences, tau=beta, eta=beta * (t + 1) / 2
        ),
        "nash_md": lambda logp, t: nash_md_update(logp, ref, preferences, beta=beta, eta=eta),
    }
    if order is not None:
        updates |= {
            "best_of_n": lambda logp, t: mixed_best_of_n(logp, ref, order, n=BEST_OF, a1=1, a2=0),
            "mixed_best_of_n": lambda logp, t: mixed_best_of_n(logp, ref, order, **MIXING),
            "log_win_rate": lambda logp, t: log_win_rate_update(
                logp, ref, order, beta=strengths.beta, eta=strengths.eta
            ),
        }
    return updates


def sampled_algorithms(beta: float, eta: float) -> Mapping[str, Sampled]:
    """The sampled algorithms by name: all of `wind.objectives`, and WIND with each risk and
    intercept.

    `wind` is this project's default: squared risk, intercept 1/2, leave-one-out win rates. A
    centred risk belongs with the self-counting win rates, which centring asks for (MATH 5.2);
    `wind_self_counting` and `wind_centred_leave_one_out` are the two wrong pairings.
    """
    wind = partial(WindObjectiveConfig, beta=beta, eta=eta)
    centred = partial(wind, shift="centred")
    others: tuple[AnyObjectiveConfig, ...] = (
        SppoObjectiveConfig(name="sppo", eta=eta),
        SppoPairObjectiveConfig(name="sppo_pair", eta=eta),
        # the same update (MATH 5.2)
        InpoObjectiveConfig(name="inpo", tau=beta, eta=beta + 1 / eta),
        DpoObjectiveConfig(name="dpo", beta=beta),
        RebelObjectiveConfig(name="rebel", eta=eta / 2),
        RaftObjectiveConfig(name="raft"),
        BonbonObjectiveConfig(name="bonbon"),
        BondObjectiveConfig(name="bond", n=BEST_OF),
        JbondObjectiveConfig(name="jbond"),
        GrpoObjectiveConfig(name="grpo"),
        RlooObjectiveConfig(name="rloo"),
        QrpoObjectiveConfig(name="qrpo", beta=1 / eta),
    )
    return {
        "wind": Sampled(wind()),
        "wind_centred": Sampled(centred(), self_counting=True),
        "wind_kl": Sampled(wind(risk="kl")),
        "wind_kl_centred": Sampled(centred(risk="kl"), self_counting=True),
        "wind_nce": Sampled(wind(risk="nce")),
        "wind_nce_noise": Sampled(wind(risk="nce_noise")),
        "wind_nce_noise_centred": Sampled(centred(risk="nce_noise"), self_counting=True),
        "wind_self_counting": Sampled(wind(), self_counting=True),
        "wind_centred_leave_one_out": Sampled(centred()),
        "ipo": Sampled(IpoObjectiveConfig(name="ipo", tau=beta), rows="all"),
    } | {objective.name: Sampled(objective) for objective in others}


def proven_factor(algorithm: str, beta: float, eta: float) -> float | None:
    """The factor by which every exact iteration shrinks KL(pi* || pi) at least, where one is
    proved: eta <= 4 beta (MATH 2.5).
    """
    steps = {"wind": eta, "wind_slow": beta}
    return (
        1 / (1 + beta * steps[algorithm])
        if algorithm in steps and steps[algorithm] <= 4 * beta
        else None
    )
