"""The WIND family: regression of log-probabilities towards the regularised win-rate-dominance update (arXiv 2410.20727).

The exact update pi_{t+1} ~ pi_t^lam pi_ref^(1-lam) exp(eta lam P_t), lam = 1/(1 + beta eta), says that the *drift*

    d(y) = log pi_theta(y) - lam log pi_t(y) - (1 - lam) log pi_ref(y)  =  eta lam (P_t(y) - c)          (MATH 2.6b)

is linear in the win rate P_t, with an intercept c that holds the unknown normaliser of the prompt. The printed paper was not
available: update and regression are derived in MATH 2.4-2.6, the treatments of the intercept are its options (a), (b) and (c).
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch

from wind.objectives.batch import Batch, Loss


def wind(logps_B: torch.Tensor, batch: Batch, *, risk: str, beta: float, eta: float, shift: str) -> Loss:
    """The WIND loss under `risk`, and its metrics: means over the rows, in nats.

    `log_ratio_policy` and `log_ratio_reference` are how far the trained policy has moved from the frozen ones on the sampled
    responses; `win_margin` is the mean of (2 P - 1) log(pi_theta / pi_t): zero at first, positive when winners gain on losers.
    """
    loss = RISKS[risk](logps_B, batch, beta=beta, eta=eta, shift=shift)
    moved_B = (logps_B - batch.logp_policy).detach()
    metrics = {
        "log_ratio_policy": moved_B.mean(),
        "log_ratio_reference": (logps_B - batch.logp_reference).detach().mean(),
        "win_margin": ((2 * batch.win_rate - 1) * moved_B).mean(),
    }
    return loss, metrics


def squared_loss(logps_B: torch.Tensor, batch: Batch, *, beta: float, eta: float, shift: str) -> torch.Tensor:
    """The mean squared residual of the drift, in nats^2 (MATH 2.6c in the scale of 2.6b); a scalar.

    `shift` treats the intercept: "half" is 1/2 (SPPO's), "strict" the normaliser of a strict order at beta = 0, and "centred"
    profiles it out, prompt by prompt: the loss is then the variance of the residual e within each group, which is half the mean
    of (e_i - e_j)^2 over all ordered pairs of its rows, and a common movement of a group costs nothing.
    """
    lam = 1 / (1 + beta * eta)
    drift_B = logps_B - lam * batch.logp_policy - (1 - lam) * batch.logp_reference
    if shift == "centred":
        residual_B = _centred(drift_B - eta * lam * batch.win_rate, batch.group)
    else:
        residual_B = drift_B - eta * lam * (batch.win_rate - INTERCEPTS[shift](eta))
    return residual_B.square().mean()


def half(eta: float) -> float:
    """The intercept 1/2 (MATH 2.6 a; SPPO eq. 4.7): targets of a prompt have mean zero."""
    return 0.5


def strict(eta: float) -> float:
    """The intercept (1/eta) log((e^eta - 1)/eta) of a strict order without ties at beta = 0 (MATH 2.6 b; SPPO appendix A)."""
    if eta < 1e-4:
        return 0.5 + eta / 24  # the series: the closed form loses all digits as eta -> 0
    return 1 + (math.log(-math.expm1(-eta)) - math.log(eta)) / eta  # e^eta factored out: it overflows at eta = 710


RISKS: Final[Mapping[str, Callable[..., torch.Tensor]]] = {"squared": squared_loss}
INTERCEPTS: Final[Mapping[str, Callable[[float], float]]] = {"half": half, "strict": strict}


def _centred(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """`values_B` minus the mean of their group; gradient flows through the mean."""
    _, index_B, rows_G = torch.unique(group_B, return_inverse=True, return_counts=True)
    sums_G = torch.zeros(len(rows_G), dtype=values_B.dtype, device=values_B.device).index_add(0, index_B, values_B)
    centred_B: torch.Tensor = values_B - (sums_G / rows_G)[index_B]
    return centred_B
