"""The WIND family: regression of log-probabilities towards the regularised win-rate-dominance
update (arXiv 2410.20727).

The exact update pi_{t+1} ~ pi_t^lam pi_ref^(1-lam) exp(eta lam P_t), lam = 1/(1 + beta eta), says
that the *drift*

    d(y) = log pi_theta(y) - lam log pi_t(y) - (1 - lam) log pi_ref(y)
         = eta lam (P_t(y) - c)                                          (MATH 2.6b)

is linear in the win rate P_t, with an intercept c that holds the unknown normaliser of the prompt.
Read backwards, the policy predicts the win rate q(y) = d(y) / (eta lam) + c, and a *risk* says how
far q is from the P that was measured. The printed paper was not available: update and regression
are derived in MATH 2.4-2.6, the treatments of the intercept are its options (a) to (e), the KL and
NCE risks are reconstructed in MATH 2.7. All risks have the same minimiser, q = P_t.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch

from wind.objectives.batch import Batch
from wind.objectives.groups import centred, group_logmeanexp


def wind(
    logps_B: torch.Tensor,
    batch: Batch,
    *,
    risk: str,
    beta: float,
    eta: float,
    shift: str,
    epsilon: float,
) -> torch.Tensor:
    """The WIND loss: the mean over the rows of `risk`, one of `RISKS`, with the intercept that
    `shift` names.

    `epsilon` is where the KL and NCE risks continue their logarithms as straight lines; the squared
    risk has none.
    """
    residual_B = residuals(logps_B, batch, beta=beta, eta=eta, shift=shift)
    if risk == "squared":
        return residual_B.square().mean()
    predicted_B = batch.win_rate + residual_B * (1 + beta * eta) / eta
    return RISKS[risk](predicted_B, batch.win_rate, epsilon).mean()


def residuals(
    logps_B: torch.Tensor, batch: Batch, *, beta: float, eta: float, shift: str
) -> torch.Tensor:
    """d - eta lam (P - c) of every row, in nats; its square is the squared risk (MATH 2.6c in the
    scale of 2.6b).

    "half" and "strict" are constant intercepts, "learned" is `batch.intercept`, trained on the same
    loss. "plug_in" estimates the normaliser from the group's own rows, log Z_t = log mean exp((1 -
    lam) log(pi_ref/pi_t) + eta lam P) (MATH 2.6 e): biased low, and at large eta decided by one
    row. "centred" profiles the intercept out, prompt by prompt: the squared risk is then the
    variance of the residual within each group, half the mean of (e_i - e_j)^2 over all ordered
    pairs of its rows, and a common movement of a group costs nothing.
    """
    lam = 1 / (1 + beta * eta)
    drift_B = logps_B - lam * batch.logp_policy - (1 - lam) * batch.logp_reference
    pull_B = eta * lam * batch.win_rate
    if shift == "centred":
        return centred(drift_B - pull_B, batch.group)
    if shift == "plug_in":
        return (
            drift_B
            - pull_B
            + group_logmeanexp(
                (1 - lam) * (batch.logp_reference - batch.logp_policy) + pull_B, batch.group
            )
        )
    if shift == "learned":
        assert batch.intercept is not None
        return drift_B - pull_B + eta * lam * batch.intercept
    return drift_B - pull_B + eta * lam * INTERCEPTS[shift](eta)


def half(eta: float) -> float:
    """The intercept 1/2 (MATH 2.6 a; SPPO eq. 4.7): targets of a prompt have mean zero."""
    return 0.5


def strict(eta: float) -> float:
    """The intercept (1/eta) log((e^eta - 1)/eta) of a strict order without ties at beta = 0 (MATH
    2.6 b; SPPO appendix A).
    """
    if eta < 1e-4:
        return 0.5 + eta / 24  # the series: the closed form loses all digits as eta -> 0
    # e^eta factored out: it overflows at eta = 710
    return 1 + (math.log(-math.expm1(-eta)) - math.log(eta)) / eta


INTERCEPTS: Final[Mapping[str, Callable[[float], float]]] = {"half": half, "strict": strict}


def kl_risk(predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float) -> torch.Tensor:
    """KL(Ber(P) || Ber(q)) of every row, in nats: 0 where q = P (MATH 2.7).

    q is linear in log pi_theta and leaves [0, 1] freely, where a clipped q would have no gradient;
    `log_extended` takes the place of the logarithm, so that the risk stays convex in q and, for P
    inside (0, 1), pulls back from either side with a slope of P / epsilon or (1 - P) / epsilon.
    """
    entropy_B = -(torch.xlogy(win_rate_B, win_rate_B) + torch.xlogy(1 - win_rate_B, 1 - win_rate_B))
    return _cross_entropy(predicted_B, win_rate_B, epsilon) - entropy_B


def nce_risk(predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float) -> torch.Tensor:
    """-2 (P log q + (1 - P) log(1 - q)) of every row: winners told from losers in all duels of the
    group (MATH 2.7a).

    Over the n (n - 1) ordered pairs i != j of a group, R = -E[log q_winner + log(1 - q_loser)],
    where i wins with probability P_ij = 1 - P_ji. Row i stands in 2 (n - 1) of them and wins with
    P_ij on either side, so that log q_i collects 2 sum_j P_ij = 2 (n - 1) P_i, with P_i the
    unbiased win rate, and log(1 - q_i) 2 (n - 1) (1 - P_i): R is the mean over the rows of what is
    returned. It is twice the cross-entropy of the KL risk; they would differ if duels were drawn.
    """
    return 2 * _cross_entropy(predicted_B, win_rate_B, epsilon)


def nce_noise_risk(
    predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """-2 P log h - log(1 - h) with h = 2q/(1 + 2q): winners told from noise, the samples of pi_t
    (MATH 2.7).

    Winners of duels have the law 2 P_t pi_t, noise the law pi_t, and h is the posterior of "winner"
    that q implies. In rows, -E_winner log h weighs each by 2 P and -E_noise log(1 - h) by 1. The
    slope in q is 2 (q - P) / (q (1 + 2q)): q = P is the minimum. Below `epsilon` log h goes on as a
    straight line, and below 0 the noise has nothing left to gain.
    """
    inside_B = predicted_B.clamp(min=epsilon)
    below_B = (predicted_B - inside_B) / (epsilon * (1 + 2 * epsilon))
    log_winner_B = (2 * inside_B).log() - (1 + 2 * inside_B).log() + below_B
    log_noise_B = -(1 + 2 * predicted_B.clamp(min=0)).log()
    return -2 * win_rate_B * log_winner_B - log_noise_B


# (predicted_B, win_rate_B, epsilon) -> the risk of every row
Risk = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
RISKS: Final[Mapping[str, Risk]] = {"kl": kl_risk, "nce": nce_risk, "nce_noise": nce_noise_risk}


def log_extended(probability_B: torch.Tensor, epsilon: float) -> torch.Tensor:
    """log p on [epsilon, 1]; below, its tangent at epsilon; above, 0, as a certain event has
    nothing left to gain.
    """
    inside_B = probability_B.clamp(epsilon, 1)
    return inside_B.log() + (probability_B.clamp(max=epsilon) - epsilon) / epsilon


def _cross_entropy(
    predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float
) -> torch.Tensor:
    return -(
        win_rate_B * log_extended(predicted_B, epsilon)
        + (1 - win_rate_B) * log_extended(1 - predicted_B, epsilon)
    )
