"""Exact updates: WIND's, its relatives', and iterative best of n.

Arguments are those of `step`; win rates are those against the current policy.
"""

import math
from typing import NamedTuple

import torch

from wind.best_of_n import RewardOrder, best_of_n
from wind.errors import InputError
from wind.games.preferences import Preferences


def step(
    logp_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    score_P_Y: torch.Tensor,
    *,
    keep: float,
    pull: float,
    gain: float,
) -> torch.Tensor:
    """Return the policy in proportion to pi^keep pi_ref^pull exp(gain score), [P, Y].

    This is the form of every update here (MATH 6). `logp_P_Y` is the current policy pi and
    `ref_P_Y` the reference pi_ref, log-probabilities in nats, and so is what is returned. `keep`
    and `pull` are powers without unit, `gain` is in nats per unit of `score_P_Y`. A factor of power
    zero counts for nothing, even where it is -inf.
    """
    factors = ((keep, logp_P_Y), (pull, ref_P_Y), (gain, score_P_Y))
    log_weights_P_Y = sum(
        (power * term for power, term in factors if power != 0), start=torch.zeros_like(logp_P_Y)
    )
    return log_weights_P_Y.log_softmax(-1)


def wind_update(
    logp_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    preferences: Preferences,
    *,
    beta: float,
    eta: float,
) -> torch.Tensor:
    """Return WIND's exact update, [P, Y], nats (MATH 2.4a).

        pi^lam pi_ref^(1-lam) exp(eta lam P_t),  lam = 1 / (1 + beta eta).

    It is the mirror step argmax <pi, P_t> - beta KL(pi || pi_ref) - KL(pi || pi_t) / eta: `beta` is
    the regularization strength, `eta` the step size. For constant-sum preferences and eta <= 4 beta
    each step shrinks KL(pi* || pi) by 1 / (1 + beta eta) or more (MATH 2.5). eta = inf,
    for beta > 0, is the regularized best response to pi_t, whose fixed point is the solution.
    Raises InputError unless beta >= 0 is finite and eta > 0, and for eta = inf at beta = 0.
    """
    lam, gain = _mirror(beta, eta)
    return step(
        logp_P_Y, ref_P_Y, preferences.win_rates(logp_P_Y.exp()), keep=lam, pull=1 - lam, gain=gain
    )


def sppo_update(logp_P_Y: torch.Tensor, preferences: Preferences, *, eta: float) -> torch.Tensor:
    """Return SPPO's exact update pi exp(eta P_t), [P, Y], nats.

    See arXiv 2405.00675, eq. 4.1: it is WIND's without a reference, beta = 0. `eta` is the step
    size.
    """
    return wind_update(logp_P_Y, logp_P_Y, preferences, beta=0.0, eta=eta)


def inpo_update(
    logp_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    preferences: Preferences,
    *,
    tau: float,
    eta: float,
) -> torch.Tensor:
    """Return INPO's exact update, [P, Y], nats.

        pi^(1 - tau/eta) pi_ref^(tau/eta) exp(P_t / eta)

    (arXiv 2407.00617, eq. 5). `eta` is an inverse step size, `tau` the regularization strength. It
    is WIND's update with beta = tau and the step 1 / (eta - tau) (MATH 5.2).
    """
    win_rates_P_Y = preferences.win_rates(logp_P_Y.exp())
    return step(logp_P_Y, ref_P_Y, win_rates_P_Y, keep=1 - tau / eta, pull=tau / eta, gain=1 / eta)


def nash_md_update(
    logp_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    preferences: Preferences,
    *,
    beta: float,
    eta: float,
) -> torch.Tensor:
    """Return Nash-MD's exact update pi_m exp(eta P(y > pi_m)), [P, Y], nats.

    Its opponent is the mixture pi_m of pi^(1 - eta beta) pi_ref^(eta beta), as in MATH 5.3,
    for eta beta <= 1; WIND's opponent is pi itself. `beta` is the regularization strength, `eta`
    the step size. Both have the same solution as their fixed point only in the limit of small
    steps.
    """
    mixture_P_Y = step(logp_P_Y, ref_P_Y, logp_P_Y, keep=1 - eta * beta, pull=eta * beta, gain=0)
    return step(
        mixture_P_Y, ref_P_Y, preferences.win_rates(mixture_P_Y.exp()), keep=1, pull=0, gain=eta
    )


def mixed_best_of_n(
    logp_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    order: RewardOrder,
    *,
    n: float,
    a1: float,
    a2: float,
) -> torch.Tensor:
    """Return one round of iterative best of n with mixing.

        BoN_n(pi)^a1 pi^(1-a1-a2) pi_ref^a2, [P, Y], nats (MATH 2.1).

    `order` is that of the rewards, `n` the number of draws, `a1` and `a2` are the weights of best
    of n and of the reference. a1 = 1, a2 = 0 is plain iterative best of n. With continuous rewards
    and from pi_ref, the iterates are best of k with k <- k (a1 n + 1 - a1 - a2) + a2 (MATH 2.2),
    see `mixed_exponent`.
    """
    return step(
        logp_P_Y, ref_P_Y, best_of_n(logp_P_Y, order, n), keep=1 - a1 - a2, pull=a2, gain=a1
    )


def mixed_exponent(k: float, *, n: float, a1: float, a2: float) -> float:
    """Return the next iterate's k if this one is best of `k`.

    Rewards are continuous, and best of k is that of the reference (MATH 2.2). `n`, `a1` and `a2`
    are those of `mixed_best_of_n`.
    """
    return k * (a1 * n + 1 - a1 - a2) + a2


def log_win_rate_update(
    logp_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, order: RewardOrder, *, beta: float, eta: float
) -> torch.Tensor:
    """Return WIND's update with the score log p_<=, [P, Y], nats.

    It is the mirror step of the game of E log P(y >= pi') - beta KL (MATH 2.1, 2.2), with the
    regularization strength `beta` and the step size `eta`. It equals `mixed_best_of_n` without the
    collision factor S, under the names of `mixing_strengths`. eta = inf is the map pi_ref
    p_<=^(1/beta), whose fixed points solve the game: best of beta / (beta - 1) for continuous
    rewards and beta > 1. A finite set may have several for beta < 1, so where the iteration ends
    depends on where it starts. Raises InputError as `wind_update` does.
    """
    lam, gain = _mirror(beta, eta)
    return step(logp_P_Y, ref_P_Y, order.log_cdf(logp_P_Y), keep=lam, pull=1 - lam, gain=gain)


class Strengths(NamedTuple):
    """Regularization strength beta and step size eta of a mirror step."""

    beta: float
    eta: float


def mixing_strengths(*, n: float, a1: float, a2: float) -> Strengths:
    """Return the strengths to which best of n with mixing amounts.

    They are those in the log-win-rate game (MATH 2.1). `n` > 1, `a1` > 0 and `a2` < 1 are those of
    `mixed_best_of_n`.
    """
    return Strengths(beta=a2 / ((n - 1) * a1), eta=(n - 1) * a1 / (1 - a2))


def _mirror(beta: float, eta: float) -> tuple[float, float]:
    """Return the two powers of a mirror step, lam and eta lam.

    lam = 1 / (1 + beta eta); eta lam is in a form that also holds for eta = inf. Raises InputError
    unless beta >= 0 and eta > 0, and for eta = inf at beta = 0, whose update has no limit.
    """
    if not (beta >= 0 and eta > 0 and math.isfinite(beta)):
        raise InputError(
            f"there is no update with beta = {beta} and eta = {eta}: "
            "use a finite beta >= 0 and eta > 0"
        )
    if beta == 0 and math.isinf(eta):
        raise InputError(
            "eta = inf is the regularized best response, and beta = 0 regularizes nothing: "
            "use beta > 0"
        )
    return 1 / (1 + beta * eta), 1 / (beta + 1 / eta)
