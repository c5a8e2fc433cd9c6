"""Sequence-level policy gradients: GRPO and RLOO.

Both maximize the clipped surrogate of PPO (arXiv 1707.06347 eq. 7) with an advantage A that is
relative to the group, and are held to the reference by the k3 estimate of the KL divergence:

    loss = -min(w A, clip(w, 1 - epsilon, 1 + epsilon) A) + beta (e^-l - 1 + l),
    w = pi_theta / pi_t,   l = log(pi_theta / pi_ref).

w is the ratio of whole responses against `logp_policy`, not of tokens as in GRPO's paper, because
log-probabilities are stored per sequence; on long responses a step leaves the clipping range
sooner. l is against `logp_reference`. Both terms average over samples of pi_t and are on-policy at
the first optimizer step only, where the gradient of the k3 term is that of KL(pi_ref || pi_theta):
with samples held fixed it pulls as the forward divergence does.
"""

import torch

from wind.objectives.batch import Batch
from wind.objectives.exponentials import bounded_exp, bounded_expm1
from wind.objectives.groups import centered, group_rows, group_sum


def grpo(logps_B: torch.Tensor, batch: Batch, *, epsilon: float, beta: float) -> torch.Tensor:
    """GRPO: the clipped surrogate of standardized rewards (arXiv 2402.03300).

    The advantage is A = (r - mean)/(std + 1e-4) over the group, 0 where all rewards are equal. std
    is the unbiased one and 1e-4 the guard of TRL's trainer.

    `logps_B` [B] is log pi_theta in nats. `epsilon` is the clipping range of the ratio w, `beta`
    the weight of the KL divergence from the reference.
    """
    centered_B = centered(batch.reward, batch.group)
    variance_B = group_sum(centered_B.square(), batch.group) / (group_rows(batch.group) - 1)
    return _clipped(logps_B, batch, centered_B / (variance_B.sqrt() + 1e-4), epsilon, beta)


def rloo(logps_B: torch.Tensor, batch: Batch, *, epsilon: float, beta: float) -> torch.Tensor:
    """RLOO: the clipped surrogate with a leave-one-out baseline (arXiv 2402.14740).

    The advantage is A = r_i - mean_{j != i} r_j = n/(n - 1) (r_i - mean r), in the unit of the
    reward. The paper subtracts the KL term from the reward; here it is a loss of its own, as in
    GRPO.

    `logps_B` [B] is log pi_theta in nats. `epsilon` is the clipping range of the ratio w, `beta`
    the weight of the KL divergence from the reference.
    """
    rows_B = group_rows(batch.group)
    return _clipped(
        logps_B, batch, rows_B / (rows_B - 1) * centered(batch.reward, batch.group), epsilon, beta
    )


def _clipped(
    logps_B: torch.Tensor, batch: Batch, advantage_B: torch.Tensor, epsilon: float, beta: float
) -> torch.Tensor:
    ratio_B = bounded_exp(logps_B - batch.logp_policy)
    surrogate_B = torch.minimum(
        ratio_B * advantage_B, ratio_B.clamp(1 - epsilon, 1 + epsilon) * advantage_B
    )
    log_ratio_B = logps_B - batch.logp_reference
    return (beta * (bounded_expm1(-log_ratio_B) + log_ratio_B) - surrogate_B).mean()
