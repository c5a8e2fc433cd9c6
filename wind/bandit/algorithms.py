"""The algorithms of the bandit study: exact updates and fitted objectives.

Each has the name that the dataset `bandit` gives it. Every algorithm starts at the reference. The
solution pi* is that of the regularized game at `beta`. INPO, Nash-MD and IPO get the parameters
under which they aim at it; the others get those that move about as far in an iteration as WIND does
with the step size `eta`. SPPO, REBEL, QRPO, RAFT, BoNBoN, BOND and J-BOND have no reference to hold
them: they tend to the best response.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from wind.bandit.instances import Instance
from wind.bandit.sampling import Draw, descended, minimized, solved
from wind.config.objective_facts import Minimum, ObjectiveSection, Rows
from wind.config.objectives import SECTIONS, WindObjectiveConfig
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

BEST_OF: Final = 2
# beta = 1.25 in the log-win-rate game, whose solution is then about best of 5
MIXING: Final = {"n": 2.0, "a1": 0.2, "a2": 0.25}
FITS: Final[Mapping[Minimum, Callable[..., torch.Tensor]]] = {
    "quadratic": solved,
    "other": minimized,
    "none": descended,
}

# (policy [P, Y], 1-based iteration) -> policy [P, Y], which sees all responses
Update = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Sampled:
    """An objective, its rows, and the estimator of its win rates.

    `self_counting` chooses the self-counting win rates; otherwise they are leave-one-out. `rows`
    selects among the samples of each group; "auto" is the selection of the objective's own paper.
    """

    objective: ObjectiveSection
    self_counting: bool = False
    rows: Rows = "auto"

    @property
    def in_blocks(self) -> bool:
        """True if small blocks of groups cost less than one batch."""
        return self.objective.facts.compares_all_rows

    @property
    def selected(self) -> Rows:
        """The rows of each group that the objective is fitted to."""
        return self.objective.facts.rows[0] if self.rows == "auto" else self.rows

    def fit(self, drawn: Draw, logp_C_Y: torch.Tensor) -> torch.Tensor:
        """Return the next policy, [C, Y], nats.

        It is fitted to the samples `drawn` from the policy `logp_C_Y`: the minimizer of the loss if
        there is one, otherwise the end of a few descent steps.
        """
        fit = FITS[self.objective.facts.minimum]
        return fit(loss_for(self.objective), drawn, logp_C_Y)


def exact_updates(instance: Instance, beta: float, eta: float) -> Mapping[str, Update]:
    """Return the exact algorithms by name.

    Those of best of n are among them where the responses of `instance` have an order. `beta` is the
    regularization strength, `eta` the step size. `wind` has the step `eta`; `wind_slow` the step
    beta, the end of the range recalled from the paper; `wind_fast` ten times `eta`, outside of all
    that is proved; `best_response` an infinite one. `inpo` is the same update with the schedule of
    its theorem 4, the inverse step size beta (t + 2) / 2 for t = 0, 1, ... (MATH 5.2).
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
    """Return the sampled algorithms by name.

    They are WIND with each risk and intercept, and every other objective of `wind.objectives` under
    its own name, with its defaults where nothing is set here. `beta` is the regularization strength
    of the game, `eta` WIND's step size. `wind` is this project's default: squared risk, intercept
    1/2, leave-one-out win rates. A centered risk belongs with the self-counting win rates, which
    centering asks for (MATH 5.2); `wind_self_counting` and `wind_centred_leave_one_out` are the two
    wrong pairings.
    """
    wind = partial(WindObjectiveConfig, beta=beta, eta=eta)
    centered = partial(wind, shift="centred")
    settings: dict[str, dict[str, Any]] = {
        "sppo": {"eta": eta},
        "sppo_pair": {"eta": eta},
        # the same update as WIND's (MATH 5.2)
        "inpo": {"tau": beta, "eta": beta + 1 / eta},
        "dpo": {"beta": beta},
        "ipo": {"tau": beta},
        "rebel": {"eta": eta / 2},
        "bond": {"n": BEST_OF},
        "qrpo": {"beta": 1 / eta},
    }
    rows: dict[str, Rows] = {"ipo": "all"}
    others = {
        name: Sampled(
            section.model_validate({"name": name, **settings.get(name, {})}),
            rows=rows.get(name, "auto"),
        )
        for name, section in SECTIONS.items()
        if name != "wind"
    }
    return {
        "wind": Sampled(wind()),
        "wind_centred": Sampled(centered(), self_counting=True),
        "wind_kl": Sampled(wind(risk="kl")),
        "wind_kl_centred": Sampled(centered(risk="kl"), self_counting=True),
        "wind_nce": Sampled(wind(risk="nce")),
        "wind_nce_noise": Sampled(wind(risk="nce_noise")),
        "wind_nce_noise_centred": Sampled(centered(risk="nce_noise"), self_counting=True),
        "wind_self_counting": Sampled(wind(), self_counting=True),
        "wind_centred_leave_one_out": Sampled(centered()),
        **others,
    }


def proven_factor(algorithm: str, beta: float, eta: float) -> float | None:
    """Return the factor by which KL(pi* || pi) is proven to shrink.

    Every exact iteration of `algorithm` shrinks it at least by 1 / (1 + beta step) where step <= 4
    beta (MATH 2.5); None where nothing is proved. `beta` is the regularization strength, `eta` the
    step size of `wind`.
    """
    steps = {"wind": eta, "wind_slow": beta}
    return (
        1 / (1 + beta * steps[algorithm])
        if algorithm in steps and steps[algorithm] <= 4 * beta
        else None
    )
