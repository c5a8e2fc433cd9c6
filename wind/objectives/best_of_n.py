"""Distillation of the best response: RAFT, BoNBoN, BOND and J-BOND.

All rows of a stored group are samples of pi_t, so the target is best-of-n *of pi_t*, iteratively;
the one-shot forms of the papers are the first iteration. BOND and J-BOND are online methods, and
distill best-of-n of an anchor. Fresh groups hold samples of the anchor, for the forward term and
the quantiles, and of the policy, for the policy gradient of the backward term. With stored samples,
where the anchor is pi_t, forward terms lose nothing, but backward terms are on-policy at the first
optimizer step only: later steps neither draw new samples nor weight by importance.

In all of them `logps_B` [B] is log pi_theta in nats.
"""

import math
from typing import Final

import torch
from torch.nn import functional as F

from wind.best_of_n import best_of_n_weights as sample_weights
from wind.objectives.batch import Batch
from wind.objectives.groups import anchors_above, group_index, group_rows, group_sum, is_best
from wind.objectives.pairs import pairs_of

EULER: Final = 0.5772156649015329


def raft(logps_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """RAFT: maximum likelihood of best-of-n (arXiv 2304.06767).

    loss = -log pi_theta of the group's best row, in nats.
    """
    return -torch.where(is_best(batch), group_rows(batch.group) * logps_B, 0.0).mean()


def bonbon(logps_B: torch.Tensor, batch: Batch, *, alpha: float, contrast: str) -> torch.Tensor:
    """BoNBoN: likelihood of the best of n, contrasted with the worst.

        loss = alpha (-log pi_theta(best)) + (1 - alpha) contrast(best, worst)

    (arXiv 2406.00832; MATH 3.2, 4.4). Groups are the best and the worst row of each prompt,
    selected from n = `samples`. Let h be the log-ratio of the two against `logp_policy`, the law
    that the n were drawn from, and 1/(2 beta*) = (n - 1) H_{n-1} the mean of h under best-of-n, see
    `target_margin`. `contrast` is "ipo", (h - 1/(2 beta*))^2, as in the paper, or "dpo",
    -log sigmoid(beta* h), which is what the authors' code computes. A group whose rewards are equal
    has no contrast. `alpha`, in [0, 1], is the weight of the likelihood.
    """
    pairs_M = pairs_of(batch)
    h_M = pairs_M.difference(logps_B - batch.logp_policy)
    margin_M = target_margin(batch.samples[pairs_M.winner].double())
    contrasts = {"ipo": (h_M - margin_M).square(), "dpo": -F.logsigmoid(h_M / (2 * margin_M))}
    return alpha * raft(logps_B, batch) + (1 - alpha) * pairs_M.mean(contrasts[contrast])


def target_margin(n: torch.Tensor) -> torch.Tensor:
    """Return BoNBoN's margin between best and worst, in nats.

    1/(2 beta*_n) = (n - 1) H_{n-1} (MATH 3.2, 4.2) is the mean of
    log(pi^(n)/pi)(best) - log(pi^(n)/pi)(worst), with pi^(n) the law of best of `n` draws from pi.
    """
    return (n - 1) * (torch.digamma(n) + EULER)  # H_{n-1} = digamma(n) + Euler's constant


def bond(logps_B: torch.Tensor, batch: Batch, *, n: int, jeffreys: float) -> torch.Tensor:
    """BOND: Jeffreys' divergence from best-of-n of the anchor (arXiv 2407.14622; MATH 1.3).

        loss = (1 - jeffreys) forward + jeffreys backward.

    Forward: the mean of -log pi_theta under best-of-n, estimated from all the anchor's rows of the
    group by `best_of_n_weights`. Backward: -(R - B) log pi_theta over the rows of pi_t, with the
    return R = (n - 1) log p - log(pi_theta/anchor) held fixed, B the mean return of the other rows,
    0 where there are none, and p the Monte Carlo quantile of `anchor_quantiles`.

    `n` is the number of draws whose best is distilled; groups have at least n rows of the anchor.
    `jeffreys`, in [0, 1], is the weight of the backward divergence, the paper's beta.
    """
    returns_B = (n - 1) * anchor_quantiles(batch).log() - (logps_B - batch.logp_anchor).detach()
    return (1 - jeffreys) * _forward(logps_B, batch, n) + jeffreys * _backward(
        logps_B, batch, returns_B
    )


def jbond(logps_B: torch.Tensor, batch: Batch, *, jeffreys: float, gamma: float) -> torch.Tensor:
    """J-BOND: BOND at n = 2, with a coarser reward.

        loss = (1 - jeffreys) forward + jeffreys backward + gamma KL(pi_theta || anchor)

    (MATH 1.6, 6a). The reward is that of `jbond_rewards`, the return R its excess over
    log(pi_theta/anchor), held fixed. The KL term has the sign that lowers the KL, the opposite of
    the printed algorithm 2 (MATH 1.6). Groups have 3 rows or more, fresh ones at least one of pi_t
    and two of the anchor.

    `jeffreys`, in [0, 1], is the weight of the backward divergence, `gamma` that of the KL term.
    """
    moved_B = (logps_B - batch.logp_anchor).detach()
    loss = (1 - jeffreys) * _forward(logps_B, batch, 2) + jeffreys * _backward(
        logps_B, batch, jbond_rewards(batch) - moved_B
    )
    return loss + gamma * _policy_mean(moved_B, logps_B, batch)


def anchor_quantiles(batch: Batch) -> torch.Tensor:
    """Estimate each row's quantile p among the anchor's samples, [B].

    p = (1 + #{j: r_j <= r})/(M + 1) against the M other samples of the anchor in the group
    (MATH 0.2, 1.4). It lies in (0, 1]: with the 1 it is never 0, and too high by (1 - p)/(M + 1) on
    average.
    """
    above_B, rows_B = anchors_above(batch)
    return (1 + rows_B - above_B) / (1 + rows_B)


def jbond_rewards(batch: Batch) -> torch.Tensor:
    """Return J-BOND's reward of each row, in nats, [B].

    It is -log 16 C(a, 2)/C(M, 2) (MATH 1.6 eq. 17) for a row with `a` of the M other samples of the
    anchor above it. The method's reward is -log 16 for a row that is strictly below both of two
    anchor samples, else 0: this is its mean over all pairs of them. Its expectation is log p where
    the quantile p is 1/2.
    """
    above_B, rows_B = anchors_above(batch)
    pairs_B = rows_B * (rows_B - 1)
    # One of two anchor samples has a single other and no pair: its reward is never used, but must
    # not be 0/0.
    return -math.log(16) * above_B * (above_B - 1) / torch.where(pairs_B > 0, pairs_B, 1.0)


def best_of_n_weights(batch: Batch, n: int) -> torch.Tensor:
    """Return the probability that each row is the best of n, [B].

    The n are drawn without replacement from the samples of the anchor in the row's group. A group's
    weights sum to 1; samples of another policy have weight 0.
    """
    rows_A = batch.is_of_anchor.nonzero().squeeze(1)
    index_A, rows_G = group_index(batch.group[rows_A])
    by_group_A = index_A.argsort(stable=True)
    weights_B = torch.zeros(len(batch.group), dtype=torch.float64, device=batch.group.device)
    for size in sorted(set(rows_G.tolist())):  # usually one size: every prompt has N samples
        members_G_N = rows_A[by_group_A[rows_G[index_A[by_group_A]] == size]].view(-1, size)
        weights_B[members_G_N] = sample_weights(batch.reward[members_G_N], n)
    return weights_B


def _forward(logps_B: torch.Tensor, batch: Batch, n: int) -> torch.Tensor:
    return -(group_rows(batch.group) * best_of_n_weights(batch, n) * logps_B).mean()


def _backward(logps_B: torch.Tensor, batch: Batch, returns_B: torch.Tensor) -> torch.Tensor:
    """REINFORCE with a leave-one-out baseline.

    The baseline is the mean return of the group's other rows of pi_t; a lone row has none.
    """
    ours_B = torch.where(batch.is_of_policy, returns_B, 0.0)  # the anchor's may be infinite
    others_B = group_sum(batch.is_of_policy.double(), batch.group) - 1
    baseline_B = (group_sum(ours_B, batch.group) - ours_B) / others_B.clamp(min=1)
    return -_policy_mean(ours_B - baseline_B, logps_B, batch)


def _policy_mean(slopes_B: torch.Tensor, logps_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean of slope times log pi_theta over samples of pi_t.

    The slopes of the anchor's samples may be anything. Groups are weighted by their rows of both
    kinds.
    """
    weights_B = group_rows(batch.group) / group_sum(batch.is_of_policy.double(), batch.group)
    return (torch.where(batch.is_of_policy, weights_B * slopes_B, 0.0) * logps_B).mean()
