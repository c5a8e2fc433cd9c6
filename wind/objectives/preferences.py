"""Losses of preference pairs: DPO, IPO, INPO and REBEL.

Each is a function of the pair's difference of log-ratios, winner minus loser, in which the
normalizer of the prompt cancels:

    h = log[pi_theta(y_w)/pi_theta(y_l)] - log[pi_base(y_w)/pi_base(y_l)].

The base is the stored `logp_reference` for DPO and IPO, whose optimum is a tilt of the reference;
the stored `logp_policy` for REBEL, a step from the current policy; and for INPO the geometric mean
of both. In all of them `logps_B` [B] is log pi_theta in nats.
"""

import torch
from torch.nn import functional as F

from wind.objectives.batch import Batch
from wind.objectives.pairs import pairs_of


def dpo(
    logps_B: torch.Tensor, batch: Batch, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """DPO: logistic loss of the implicit reward margin.

        loss = -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h),

    with h against `logp_reference` (arXiv 2305.18290 eq. 7; MATH 5). `beta` is the inverse
    temperature. `label_smoothing` is s, the share of pairs assumed to be labeled the wrong way
    around: for s > 0 the minimum is at the finite margin beta h = log((1 - s)/s), for s = 0 there
    is none.
    """
    pairs_M = pairs_of(batch)
    h_M = pairs_M.difference(logps_B - batch.logp_reference)
    return pairs_M.mean(
        -(1 - label_smoothing) * F.logsigmoid(beta * h_M)
        - label_smoothing * F.logsigmoid(-beta * h_M)
    )


def ipo(logps_B: torch.Tensor, batch: Batch, *, tau: float) -> torch.Tensor:
    """IPO: squared distance from a fixed margin.

        loss = (h - 1/(2 tau))^2, in nats^2 (arXiv 2310.12036 eq. 17; MATH 5),

    with h against `logp_reference`, from sums over tokens, not means. `tau` is the regularization
    strength.
    """
    pairs_M = pairs_of(batch)
    h_M = pairs_M.difference(logps_B - batch.logp_reference)
    return pairs_M.mean((h_M - 1 / (2 * tau)).square())


def inpo(logps_B: torch.Tensor, batch: Batch, *, eta: float, tau: float) -> torch.Tensor:
    """INPO: squared loss against the current policy and the reference (MATH 5.2).

        loss = (h - 1/(2 eta))^2, in nats^2 (arXiv 2407.00617),

    with h against (tau `logp_reference` + (eta - tau) `logp_policy`)/eta. `eta` is an inverse step
    size, `tau` the weight of the KL divergence from the reference. The update is WIND's at
    beta = tau and step 1/(eta - tau): over all pairs the gradient is 2n/(n - 1) times that of
    WIND's centered squared risk with self-counting win rates.

    In a pair of equal rewards either row is preferred as often as the other: its target is 0, and
    leaving it out would bias the update. The authors' best-against-worst pairs are not the
    independent draws of pi_t that their proposition 6 asks for.
    """
    pairs_M = pairs_of(batch, with_ties=True)
    h_M = pairs_M.difference(
        logps_B - tau / eta * batch.logp_reference - (1 - tau / eta) * batch.logp_policy
    )
    return pairs_M.mean((h_M - pairs_M.difference(batch.reward).sign() / (2 * eta)).square())


def rebel(logps_B: torch.Tensor, batch: Batch, *, eta: float) -> torch.Tensor:
    """REBEL: squared loss against the difference of rewards (arXiv 2404.16767; MATH 5).

        loss = (h - eta (r_w - r_l))^2, in nats^2,

    with h against `logp_policy`. `eta` is in nats per unit of reward. Over all pairs, those of
    equal reward included, the fit is pi_{t+1} ~ pi_t exp(eta r).
    """
    pairs_M = pairs_of(batch, with_ties=True)
    h_M = pairs_M.difference(logps_B - batch.logp_policy)
    return pairs_M.mean((h_M - eta * pairs_M.difference(batch.reward)).square())
