"""Policy gradients on stored samples, at the level of sequences: GRPO and RLOO.

Both maximise the clipped surrogate of PPO (arXiv 1707.06347 eq. 7) with an advantage A that is
relative to the group, and are held to the reference by the k3 estimate of the KL divergence:

    loss = -min(w A, clip(w, 1 - epsilon, 1 + epsilon) A) + beta (e^-l - 1 + l),
    w = pi_theta / pi_t,   l = log(pi_theta / pi_ref).

w is the ratio of whole responses against the stored `logp_policy`, not of tokens as GRPO's paper
has it, because log-probabilities are stored by sequence; on long responses a step leaves the
clipping range sooner. l is against `logp_reference`. Both terms average over samples of pi_t and
are on-policy at the first optimiser step only, where the gradient of the k3 term is that of
KL(pi_ref || pi_theta): with samples held fixed it pulls as the forward divergence does.
"""

import torch

from wind.objectives.batch import Batch
from wind.objectives.exponentials import bounded_exp, bounded_expm1
from wind.objectives.groups import centred, group_rows, group_sum


def grpo(logps_B: torch.Tensor, batch: Batch, *, epsilon: float, beta: float) -> torch.Tensor:
    """The surrogate with A = (r - mean)/(std + 1e-4) over the group (arXiv 2402.03300): 0 where all
    rewards are equal.

    std is the unbiased one and 1e-4 the guard of TRL's trainer.
    """
    centred_B = centred(batch.reward, batch.group)
    variance_B = group_sum(centred_B.square(), batch.group) / (group_rows(batch.group) - 1)
    return _clipped(logps_B, batch, centred_B / (variance_B.sqrt() + 1e-4), epsilon, beta)


def rloo(logps_B: torch.Tensor, batch: Batch, *, epsilon: float, beta: float) -> torch.Tensor:
    """The surrogate with A = r_i - mean_{j != i} r_j = n/(n - 1) (r_i - mean r) (arXiv 2402.14740).

    The paper puts the KL term into the reward; here it is a loss of its own, as in GRPO.
    """
    rows_B = group_rows(batch.group)
    return _clipped(
        logps_B, batch, rows_B / (rows_B - 1) * centred(batch.reward, batch.group), epsilon, beta
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
