"""The WIND family: regression toward the regularized win-rate-dominance update.

The exact update (arXiv 2410.20727), pi_{t+1} ~ pi_t^lam pi_ref^(1-lam) exp(eta lam P_t) with lam =
1/(1 + beta eta), says that the *drift*

    d(y) = log pi_theta(y) - lam log pi_t(y) - (1 - lam) log pi_ref(y)
         = eta lam (P_t(y) - c)                                          (MATH 2.6b)

is linear in the win rate P_t, with an intercept c that holds the unknown normalizer of the prompt.
Read backward, the policy predicts the win rate q(y) = d(y) / (eta lam) + c, and a *risk* measures
how far q is from the measured P. All risks have the same minimizer, q = P_t.

The printed paper was not available: update and regression are derived in MATH 2.4-2.6, the
treatments of the intercept are its options (a) to (e), the KL and NCE risks are reconstructed in
MATH 2.7.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch

from wind.objectives.batch import Batch
from wind.objectives.groups import centered, group_logmeanexp


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
    """WIND: the mean risk of the predicted win rates.

    `logps_B` [B] is log pi_theta in nats. `risk` is "squared", in nats^2, or one of `RISKS`, in
    nats. `beta`, in units of win rate per nat, is the weight of the KL divergence from the
    reference, and `eta`, in nats per unit of win rate, the step size of mirror descent; together
    they set lam = 1/(1 + beta eta). `shift` names the intercept, see `residuals`. `epsilon` is the
    predicted win rate below which the KL and NCE risks continue their logarithms as straight lines;
    the squared risk has none.
    """
    residual_B = residuals(logps_B, batch, beta=beta, eta=eta, shift=shift)
    if risk == "squared":
        return residual_B.square().mean()
    predicted_B = batch.win_rate + residual_B * (1 + beta * eta) / eta
    return RISKS[risk](predicted_B, batch.win_rate, epsilon).mean()


def residuals(
    logps_B: torch.Tensor, batch: Batch, *, beta: float, eta: float, shift: str
) -> torch.Tensor:
    """Return every row's residual of the regression, in nats, [B].

        e = d - eta lam (P - c)                           (MATH 2.6c in the scale of 2.6b)

    Its square is the squared risk. `logps_B`, `beta` and `eta` are those of `wind`; `shift` names
    the intercept c:

        half, strict   constants, see `INTERCEPTS`
        learned        `batch.intercept`, trained on the same loss
        plug_in        the normalizer, estimated from the group's own rows (MATH 2.6 e):
                       log Z_t = log mean exp((1 - lam) log(pi_ref/pi_t) + eta lam P)
        centred        profiled out, prompt by prompt: e minus its mean over the group

    "plug_in" is biased low, and at large eta decided by one row. With "centred" the squared risk is
    the variance of the residual within each group, half the mean of (e_i - e_j)^2 over all ordered
    pairs of its rows, and a common movement of a group costs nothing.
    """
    lam = 1 / (1 + beta * eta)
    drift_B = logps_B - lam * batch.logp_policy - (1 - lam) * batch.logp_reference
    pull_B = eta * lam * batch.win_rate
    if shift == "centred":
        return centered(drift_B - pull_B, batch.group)
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
    """Return the intercept 1/2 (MATH 2.6 a; SPPO eq. 4.7).

    The targets of a prompt then have mean zero. `eta`, the step size, does not enter.
    """
    return 0.5


def strict(eta: float) -> float:
    """Return the intercept (1/eta) log((e^eta - 1)/eta) of the step size `eta`.

    It is exact for a strict order without ties at beta = 0 (MATH 2.6 b; SPPO appendix A).
    """
    if eta < 1e-4:
        # the series: the closed form loses all digits as eta -> 0
        return 0.5 + eta / 24
    # e^eta factored out: it overflows at eta = 710
    return 1 + (math.log(-math.expm1(-eta)) - math.log(eta)) / eta


INTERCEPTS: Final[Mapping[str, Callable[[float], float]]] = {"half": half, "strict": strict}


def kl_risk(predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the KL divergence of every row, in nats, [B].

        KL(Ber(P) || Ber(q)), 0 where q = P                                       (MATH 2.7)

    `predicted_B` [B] holds q, `win_rate_B` [B] holds P. q is linear in log pi_theta and leaves [0,
    1] freely, where a clipped q would have no gradient. `log_extended`, with its `epsilon`, takes
    the place of the logarithm, so that the risk stays convex in q and, for P inside (0, 1), pulls
    back from either side with a slope of P / epsilon or (1 - P) / epsilon.
    """
    entropy_B = -(torch.xlogy(win_rate_B, win_rate_B) + torch.xlogy(1 - win_rate_B, 1 - win_rate_B))
    return _cross_entropy(predicted_B, win_rate_B, epsilon) - entropy_B


def nce_risk(predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the risk of telling winners from losers, in nats, [B].

        -2 (P log q + (1 - P) log(1 - q))                                        (MATH 2.7a)

    `predicted_B` [B] holds q, `win_rate_B` [B] holds P; `epsilon` is that of `log_extended`.

    Over the n (n - 1) ordered pairs i != j of a group, R = -E[log q_winner + log(1 - q_loser)],
    where i wins with probability P_ij = 1 - P_ji. Row i stands in 2 (n - 1) of them and wins with
    P_ij on either side, so that log q_i collects 2 sum_j P_ij = 2 (n - 1) P_i, with P_i the
    unbiased win rate, and log(1 - q_i) collects 2 (n - 1) (1 - P_i): R is the mean over the rows of
    what is returned. It is twice the cross-entropy of the KL risk; they would differ if duels were
    drawn.
    """
    return 2 * _cross_entropy(predicted_B, win_rate_B, epsilon)


def nce_noise_risk(
    predicted_B: torch.Tensor, win_rate_B: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return the risk of telling winners from noise, in nats, [B].

        -2 P log h - log(1 - h),  h = 2q/(1 + 2q)                                 (MATH 2.7)

    `predicted_B` [B] holds q, `win_rate_B` [B] holds P. Noise are the samples of pi_t. Winners of
    duels have the law 2 P_t pi_t, noise the law pi_t, and h is the posterior of "winner" that q
    implies. In rows, -E_winner log h weighs each by 2 P and -E_noise log(1 - h) by 1. The slope in
    q is 2 (q - P) / (q (1 + 2q)): q = P is the minimum. Below `epsilon` log h continues as a
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
    """Return log p, extended beyond [epsilon, 1], of every `probability_B` [B].

    Below `epsilon` it continues along its tangent. Above 1 it is 0, since a certain event has
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
