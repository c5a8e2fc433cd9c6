"""SPPO: self-play preference optimization (arXiv 2405.00675).

The update pi_{t+1} ~ pi_t exp(eta P_t) is fitted by squared loss. It is WIND's without the
reference, beta = 0, and with the intercept 1/2 in place of the normalizer (MATH 4.1). The reference
of the authors' code is the model at the start of the iteration: here the stored `logp_policy`.
`logp_reference` does not enter.
"""

import torch

from wind.objectives.batch import Batch
from wind.objectives.pairs import pairs_of


def sppo(logps_B: torch.Tensor, batch: Batch, *, eta: float) -> torch.Tensor:
    """SPPO on single responses (SPPO eq. 4.7).

        loss = mean over rows of (log(pi_theta/pi_t) - eta (P - 1/2))^2, in nats^2.

    `logps_B` [B] is log pi_theta in nats, `eta` the step size.
    """
    return _squares(logps_B, batch, eta).mean()


def sppo_pair(logps_B: torch.Tensor, batch: Batch, *, eta: float) -> torch.Tensor:
    """SPPO on pairs, the loss of the authors' code.

    It is the mean of the squares of (4.7) over the two rows of each pair (commit 5e61c4e; MATH
    4.2). `logps_B` [B] is log pi_theta in nats, `eta` the step size.

    Each row keeps its own win rate as it is stored; the authors' is the self-counting estimate, and
    their pair is "best_worst". Rows that are selected for being best or worst carry labels biased
    outward (MATH 2.8). Their code keeps a pair whose rewards are equal, which only holds back the
    drift; here such a group has no pair.
    """
    pairs_M = pairs_of(batch)
    squares_B = _squares(logps_B, batch, eta)
    return pairs_M.mean((squares_B[pairs_M.winner] + squares_B[pairs_M.loser]) / 2)


def _squares(logps_B: torch.Tensor, batch: Batch, eta: float) -> torch.Tensor:
    return (logps_B - batch.logp_policy - eta * (batch.win_rate - 0.5)).square()
