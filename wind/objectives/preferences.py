"""Losses of preference pairs: DPO, IPO, INPO and REBEL.

All look at a pair's difference of log-ratios, winner minus loser, in which the normaliser of the
prompt cancels:

    h = log[pi_theta(y_w)/pi_theta(y_l)] - log[pi_base(y_w)/pi_base(y_l)].

The base is the stored `logp_reference` for DPO and IPO, whose optimum is a tilt of the reference;
the stored `logp_policy` for REBEL, a step from the current policy; and for INPO the geometric mean
of both.
"""

import torch
from torch.nn import functional as F

from wind.objectives.batch import Batch
from wind.objectives.pairs import pairs_of


def dpo(
    logps_B: torch.Tensor, batch: Batch, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """-(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h), h against `logp_reference` (arXiv
    2305.18290 eq. 7; MATH 5).

    The label smoothing s is the share of pairs believed to be labelled the wrong way round: at s >
    0 the loss has its minimum at the finite margin beta h = log((1 - s)/s), at s = 0 it has none.
    """
    pairs_M = pairs_of(batch)
    h_M = pairs_M.difference(logps_B - batch.logp_reference)
    return pairs_M.mean(
        -(1 - label_smoothing) * F.logsigmoid(beta * h_M)
        - label_smoothing * F.logsigmoid(-beta * h_M)
    )


def ipo(logps_B: torch.Tensor, batch: Batch, *, tau: float) -> torch.Tensor:
    """(h - 1/(2 tau))^2, h against `logp_reference`, in nats^2 (arXiv 2310.12036 eq. 17; MATH 5);
    sums over tokens, not means.
    """
    pairs_M = pairs_of(batch)
    h_M = pairs_M.difference(logps_B - batch.logp_reference)
    return pairs_M.mean((h_M - 1 / (2 * tau)).square())


def inpo(logps_B: torch.Tensor, batch: Batch, *, eta: float, tau: float) -> torch.Tensor:
    """(h - 1/(2 eta))^2, h against (tau `logp_reference` + (eta - tau) `logp_policy`)/eta, nats^2
    (arXiv 2407.00617, MATH 5.2).

    eta is an inverse step. The update is WIND's at beta = tau and step 1/(eta - tau): over all
    pairs the gradient is 2n/(n - 1) times that of WIND's centred squared risk with self-counting
    win rates. A pair with equal rewards is preferred one way as often as the other: its target is
    0, and leaving it out would bias the update. The authors' best-against-worst pairs are not the
    independent draws of pi_t that their proposition 6 asks for.
    """
    pairs_M = pairs_of(batch, with_ties=True)
    h_M = pairs_M.difference(
        logps_B - tau / eta * batch.logp_reference - (1 - tau / eta) * batch.logp_policy
    )
    return pairs_M.mean((h_M - pairs_M.difference(batch.reward).sign() / (2 * eta)).square())


def rebel(logps_B: torch.Tensor, batch: Batch, *, eta: float) -> torch.Tensor:
    """(h - eta (r_w - r_l))^2, h against `logp_policy`, in nats^2 (arXiv 2404.16767; MATH 5).

    Over all pairs, equal rewards included, it is fitted by pi_{t+1} ~ pi_t exp(eta r).
    """
    pairs_M = pairs_of(batch, with_ties=True)
    h_M = pairs_M.difference(logps_B - batch.logp_policy)
    return pairs_M.mean((h_M - eta * pairs_M.difference(batch.reward)).square())
