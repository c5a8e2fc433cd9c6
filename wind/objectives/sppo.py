"""SPPO: self-play preference optimisation (arXiv 2405.00675), pi_{t+1} ~ pi_t exp(eta P_t) fitted
by squared loss.

It is WIND without the reference, beta = 0, and with the intercept 1/2 in place of the normaliser
(MATH 4.1). The reference of the authors' code is the model at the start of the iteration: here the
stored `logp_policy`. `logp_reference` does not enter.
"""

import torch

from wind.objectives.batch import Batch
from wind.objectives.pairs import pairs_of


def sppo(logps_B: torch.Tensor, batch: Batch, *, eta: float) -> torch.Tensor:
    """The mean of (log(pi_theta/pi_t) - eta (P - 1/2))^2 over the rows, in nats^2 (SPPO eq. 4.7)."""
    return _squares(logps_B, batch, eta).mean()


def sppo_pair(logps_B: torch.Tensor, batch: Batch, *, eta: float) -> torch.Tensor:
    """The loss of the authors' code, the mean of the squares of (4.7) over the two rows of each
    pair (MATH 4.2, commit 5e61c4e).

    Each row keeps its own win rate as it is stored; the authors' is the self-counting estimate, and
    their pair is "best_worst". Rows that are selected for being best or worst carry labels biased
    outwards (MATH 2.8). Their code keeps a pair whose rewards are equal, which only holds back the
    drift; here such a group has no pair.
    """
    pairs_M = pairs_of(batch)
    squares_B = _squares(logps_B, batch, eta)
    return pairs_M.mean((squares_B[pairs_M.winner] + squares_B[pairs_M.loser]) / 2)


def _squares(logps_B: torch.Tensor, batch: Batch, eta: float) -> torch.Tensor:
    return (logps_B - batch.logp_policy - eta * (batch.win_rate - 0.5)).square()
