"""QRPO: regression on quantile rewards, whose normalizer is known (arXiv 2507.08068)."""

import math

import torch

from wind.objectives.batch import Batch
from wind.objectives.groups import group_rows, rewards_below


def qrpo(logps_B: torch.Tensor, batch: Batch, *, beta: float) -> torch.Tensor:
    """QRPO: squared loss of the log-ratio against the quantile of the reward.

        loss = mean over rows of (u - beta log Z - beta log(pi_theta/pi_t))^2,

    in squared units of the quantile. u is the share of the group's other rows whose reward is no
    larger, which is the quantile of the reward under the law that was sampled. That law,
    `logp_policy`, is therefore also the base of the log-ratio; it is the authors' reference at the
    first iteration. Without ties u is uniform on [0, 1] in the limit of many rows, and
    Z = beta (e^(1/beta) - 1); the optimum is the tilt pi_t exp(u/beta)/Z (MATH 0.4).

    `logps_B` [B] is log pi_theta in nats. `beta` is the weight of the KL divergence from pi_t. The
    form is that of the authors' code (CLAIRE-Labo, commit 0d80ee5, transform "identity"), which
    drops the -1 of Z; the paper's text was not read.
    """
    _, not_above_B = rewards_below(batch)
    quantile_B = (not_above_B - 1) / (group_rows(batch.group) - 1)
    log_z = math.log(beta) + 1 / beta + math.log(-math.expm1(-1 / beta))
    return (quantile_B - beta * log_z - beta * (logps_B - batch.logp_policy)).square().mean()
