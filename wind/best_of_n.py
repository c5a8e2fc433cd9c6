"""Best of n over finite response sets: law, closed forms, estimators.

Best of n draws n responses from a policy and keeps the one of the highest reward (BOND, arXiv
2407.14622). Here a prompt has Y responses, listed with their log-probabilities, so nothing is
sampled and no normalizer is unknown: these are the oracles that training on samples is measured
against. Tensors are float64, batched over prompts, and nothing loops over prompts or responses.

Axis suffixes: _P prompts, _Y the responses of a prompt's finite set, _N samples, _M samples of
another policy. A response of log-probability -inf is never given: that is how prompts with fewer
than Y responses are padded.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from wind.errors import InputError

# log of a number that float64 hardly sees next to 1
NEGLIGIBLE: Final = -36.0
# below it two terms of the series are exact to 1e-12, and the closed form is not
SERIES: Final = 1e-2


@dataclass(frozen=True)
class RewardOrder:
    """The responses of each prompt in the order of their rewards.

    It is sorted once and used for every policy. `ascending` [P, Y] lists the responses from the
    worst to the best; `below` and `upto` [P, Y] count, for each response, those worse than it and
    those not better, itself included. Responses of equal `below` are one tie class.
    """

    ascending: torch.Tensor
    below: torch.Tensor
    upto: torch.Tensor

    @classmethod
    def of(cls, rewards_P_Y: torch.Tensor, *, break_ties: bool = False) -> "RewardOrder":
        """Sort the responses by `rewards_P_Y`.

        With `break_ties` the order is strict: of equal rewards the first response is the better
        one. Raises InputError for a NaN reward.
        """
        _refuse_nan(rewards_P_Y)
        # Descending and flipped: a stable sort keeps the first of equals in front, which is the
        # better end.
        ascending = torch.sort(rewards_P_Y, descending=True, stable=True).indices.flip(-1)
        if break_ties:
            below = ascending.argsort()
            return cls(ascending, below, below + 1)
        below, upto = _counts(rewards_P_Y, rewards_P_Y)
        return cls(ascending, below, upto)

    def reversed(self) -> "RewardOrder":
        """Return the order with the worst response as the best.

        Best of n in it is worst of n.
        """
        size = self.below.shape[-1]
        return RewardOrder(self.ascending.flip(-1), size - self.upto, size - self.below)

    def log_cdf(self, logp_P_Y: torch.Tensor, *, strict: bool = False) -> torch.Tensor:
        """Return log p_<=(y) of every response, [P, Y], nats (BOND eq. 3).

        It is the log-probability that a response of the policy `logp_P_Y` is not better than y.
        With `strict` it is log p_<(y), that it is worse than y: -inf for the worst.
        """
        cumulative = logp_P_Y.gather(-1, self.ascending).logcumsumexp(-1)
        from_nothing = torch.nn.functional.pad(cumulative, (1, 0), value=-torch.inf)  # [P, Y + 1]
        return from_nothing.gather(-1, self.below if strict else self.upto)

    def log_mass(self, logp_P_Y: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each response's tie class, [P, Y], nats.

        It is log(p_<= - p_<), summed class by class and not as a difference of CDFs, which would
        lose a small class next to a large one.
        """
        # finite: -inf - -inf is not a number
        empty = torch.full_like(logp_P_Y, torch.finfo(logp_P_Y.dtype).min)
        largest_P_Y = empty.scatter_reduce(-1, self.below, logp_P_Y, "amax").gather(-1, self.below)
        return largest_P_Y + self.class_sum((logp_P_Y - largest_P_Y).exp()).log()

    def class_sum(self, values_P_Y: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values_P_Y` over each response's tie class, [P, Y]."""
        return (
            torch.zeros_like(values_P_Y)
            .scatter_add(-1, self.below, values_P_Y)
            .gather(-1, self.below)
        )


def best_of_n(logp_P_Y: torch.Tensor, order: RewardOrder, n: float) -> torch.Tensor:
    """Return the log-probabilities of the best of n responses, [P, Y], nats.

    `logp_P_Y` is the policy, in nats; `n` is any real number > 0, else InputError is raised. The
    best of n draws lies in a tie class or below it with probability p_<=^n, so it lies *in* the
    class with probability p_<=^n - p_<^n (MATH 1.1). Whichever of the tied draws is kept without
    regard to which response it is (the first one, say), it is distributed as one draw given the
    class, that is in proportion to pi. Hence

        pi_BoN(y) = pi(y) / (p_<= - p_<) (p_<=^n - p_<^n)  =  pi(y) p_<=^(n-1) S(y),

    the form of BOND's Theorem 1 (arXiv 2407.14622), with or without ties. In an order without ties
    (`break_ties`) every class is one response and pi_BoN(y) = p_<=^n - p_<^n.
    """
    log_cdf_P_Y, log_collisions_P_Y = _law(logp_P_Y, order, n)
    return _impossible_stays(logp_P_Y + (n - 1) * log_cdf_P_Y + log_collisions_P_Y, logp_P_Y)


def worst_of_n(logp_P_Y: torch.Tensor, order: RewardOrder, n: float) -> torch.Tensor:
    """Return the log-probabilities of the worst of n responses, [P, Y], nats.

    They are those of pi / (p_>= - p_>) (p_>=^n - p_>^n). The arguments are those of `best_of_n`.
    """
    return best_of_n(logp_P_Y, order.reversed(), n)


def bond_reward(logp_P_Y: torch.Tensor, order: RewardOrder, n: float) -> torch.Tensor:
    """Return the reward whose KL-regularized optimum is best of n.

    r_BOND = log p_<= + log(S) / (n - 1), [P, Y], nats (BOND eq. 8). pi_BoN is pi exp(r_BOND (n -
    1)) without a normalizer: the regularization strength is 1 / (n - 1). Not defined at n = 1. The
    arguments are those of `best_of_n`.
    """
    log_cdf_P_Y, log_collisions_P_Y = _law(logp_P_Y, order, n)
    return log_cdf_P_Y + log_collisions_P_Y / (n - 1)


def jbond_reward(rewards_P_N: torch.Tensor, anchor_rewards_P_M: torch.Tensor) -> torch.Tensor:
    """Return J-BOND's reward of each sample, [P, N], nats (BOND eq. 17).

    r_J is -log 16 for a reward strictly below those of all the prompt's anchor samples,
    `anchor_rewards_P_M`, else 0. J-BOND draws M = 2 anchors. With them E r_J = -log(16) (1 -
    p_<=)^2, which is log p_<= at p_<= = 1/2 (MATH 1.6).
    """
    loses_P_N = rewards_P_N < anchor_rewards_P_M.amin(-1, keepdim=True)
    return -math.log(16) * loses_P_N.to(torch.float64)


# ------------------------------------------------------------------------ closed forms without ties


class AgainstReference(NamedTuple):
    """Figures of a policy over continuous rewards against the reference.

    `win_rate` is the probability of beating it, `kl` is KL(pi || pi_ref) in nats.
    """

    win_rate: float
    kl: float


def best_of_n_figures(n: float) -> AgainstReference:
    """Return the figures of best of `n`, any real number > 0.

    Its density in the reference's quantile u is n u^(n-1) (BOND A.2; MATH 0.4). The KL is an upper
    bound where the response set is finite or rewards tie.
    """
    return AgainstReference(n / (n + 1), math.log(n) - (n - 1) / n)


def tilt_figures(c: float) -> AgainstReference:
    """Return the figures of the exponential tilt of strength c > 0.

    Its density in the reference's quantile u is c e^(cu) / (e^c - 1), which has the highest win
    rate for its KL (MATH 0.4).
    """
    if c < SERIES:
        # the closed form subtracts 1/c from itself
        win_rate = 0.5 + c / 12 - c**3 / 720
        return AgainstReference(win_rate, c * c / 24 - c**4 / 960)
    win_rate = -1 / math.expm1(-c) - 1 / c
    return AgainstReference(win_rate, c * win_rate - c - math.log(-math.expm1(-c) / c))


def wind_figures(beta: float) -> AgainstReference:
    """Return the figures of WIND's solution at `beta` > 0.

    Its density in the reference's quantile u is beta c / (1 - c u) with c = 1 - e^(-1/beta) (MATH
    0.4). Its win rate is that of the tilt by 1/beta; its KL is higher. For small beta it lies below
    best of n of the same KL.
    """
    x = 1 / beta
    # log(beta c) + 1/(2 beta) = log(sinh(x/2) / (x/2))
    kl = x * x / 24 - x**4 / 2880 if x < SERIES else x / 2 + math.log(-math.expm1(-x) / x)
    return AgainstReference(tilt_figures(x).win_rate, kl)


def known_curves(reach: float) -> dict[str, list[AgainstReference]]:
    """Compute the win rates and KLs known in closed form.

    They go up to a KL of `reach`. They are those of best of n, of the tilt and of WIND's solutions
    (MATH 0.4). No policy has a higher win rate for its KL than the tilt, by rewards without ties.
    """
    curves = {
        "best of n": [best_of_n_figures(float(n)) for n in np.geomspace(1, 1000, 500)],
        "highest for its KL": [tilt_figures(float(c)) for c in np.geomspace(1e-3, 1000, 500)],
        "solutions of WIND": [wind_figures(1 / float(x)) for x in np.geomspace(1e-3, 100, 500)],
    }
    return {
        label: [point for point in points if point.kl <= reach] for label, points in curves.items()
    }


# -------------------------------------------------------------------------- estimators from samples


def best_of_n_weights(rewards_P_N: torch.Tensor, n: int) -> torch.Tensor:
    """Return the weights that estimate means under best of n, [P, N].

    The weights w_i of N >= n samples sum to 1, and sum_i w_i f(y_i) estimates E_BoN f without bias.
    A weight is the share of the C(N, n) subsets whose best sample is y_i, C(k-1, n-1) / C(N, n) at
    ascending rank k; tied samples share their ranks' weights equally (MATH 0.2). This averages best
    of n over all subsets of the samples (Rao-Blackwell). Raises InputError for a NaN reward and
    unless 1 <= n <= N.
    """
    order = RewardOrder.of(rewards_P_N)
    weights_P_N = _rank_weights(n, rewards_P_N).gather(
        -1, RewardOrder.of(rewards_P_N, break_ties=True).below
    )
    return order.class_sum(weights_P_N) / (order.upto - order.below)


def worst_of_n_weights(rewards_P_N: torch.Tensor, n: int) -> torch.Tensor:
    """Return the weights that estimate means under worst of n, [P, N].

    They are C(N-k, n-1) / C(N, n) at ascending rank k, and sum to 1; the rest is as in
    `best_of_n_weights`.
    """
    return best_of_n_weights(-rewards_P_N, n)


def quantiles(rewards_P_N: torch.Tensor, others_P_M: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimate p_<= of each reward under another policy, [P, N].

    `others_P_M` holds the rewards of M samples of that policy, at the same prompts. With W of the M
    strictly smaller and T equal, the `estimator` `monte_carlo` is (W + T) / M (BOND eq. 10),
    unbiased but possibly 0; `smoothed` is (1 + W) / (M + 1) (vBoN's code, MATH 0.2), never 0;
    `half_ties` is (1/2 + W + T/2) / (M + 1), never 0 or 1. Raises InputError for a NaN reward and
    for any other estimator.
    """
    _refuse_nan(rewards_P_N)
    _refuse_nan(others_P_M)
    wins_P_N, not_better_P_N = (
        counts.to(torch.float64) for counts in _counts(rewards_P_N, others_P_M)
    )
    samples = others_P_M.shape[-1]
    if estimator == "monte_carlo":
        return not_better_P_N / samples
    if estimator == "smoothed":
        return (1 + wins_P_N) / (samples + 1)
    if estimator == "half_ties":
        # W + T/2 = (W + (W + T)) / 2
        return (0.5 + (wins_P_N + not_better_P_N) / 2) / (samples + 1)
    raise InputError(
        f"no quantile estimator is called {estimator!r}: use monte_carlo, smoothed or half_ties"
    )


# ---------------------------------------------------------------------------------- what they share


def _law(logp_P_Y: torch.Tensor, order: RewardOrder, n: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p_<= and log S, [P, Y], nats.

    S = (1 - (p_</p_<=)^n) / (1 - p_</p_<=) is 1 for the worst response and n for a negligible one.
    For whole n it is BOND's sum of (p_</p_<=)^(i-1) over i = 1..n.
    """
    if not n > 0:
        raise InputError(f"best of {n} is not defined: n must be positive")
    log_cdf_P_Y, log_mass_P_Y = order.log_cdf(logp_P_Y), order.log_mass(logp_P_Y)
    log_share_P_Y = _impossible_stays(log_mass_P_Y - log_cdf_P_Y, log_mass_P_Y)
    # log(p_< / p_<=): whichever of its two forms does not subtract nearly equal numbers
    log_rest_P_Y = torch.where(
        log_share_P_Y < -math.log(2),
        (-log_share_P_Y.exp()).log1p(),
        order.log_cdf(logp_P_Y, strict=True) - log_cdf_P_Y,
    )
    log_collisions_P_Y = torch.where(
        log_share_P_Y + math.log(max(n, 1)) < NEGLIGIBLE,
        math.log(n),
        (-(n * log_rest_P_Y).expm1()).log() - log_share_P_Y,
    )
    return log_cdf_P_Y, log_collisions_P_Y


def _impossible_stays(logs_P_Y: torch.Tensor, logp_P_Y: torch.Tensor) -> torch.Tensor:
    """Return `logs_P_Y`, with -inf wherever `logp_P_Y` is -inf.

    Arithmetic with infinities may have left NaN there.
    """
    return torch.where(logp_P_Y.isneginf(), -torch.inf, logs_P_Y)


def _rank_weights(n: int, rewards_P_N: torch.Tensor) -> torch.Tensor:
    """Return the weights of the ascending ranks k = 1..N, [P, N].

    They are C(k-1, n-1) / C(N, n). The weights are the same for each prompt. They go
    from w_N = n/N down by w_(k-1) / w_k = (k - n) / (k - 1), as a sum of logs: no factorial can
    overflow, and unlike differences of log-gammas, which are as large as N log N, the sum keeps its
    digits.
    """
    samples = rewards_P_N.shape[-1]
    if not 1 <= n <= samples:
        raise InputError(
            f"best of {n} cannot be estimated from {samples} samples of a prompt: "
            f"sample at least {n}"
        )
    k = torch.arange(n, samples + 1, dtype=torch.float64, device=rewards_P_N.device)
    log_ratios = (-(n - 1) / (k[1:] - 1)).log1p()
    log_weights = torch.cat([log_ratios.flip(0).cumsum(0).flip(0), k.new_zeros(1)]) + math.log(
        n / samples
    )
    # a rank below n is never the best of n
    weights_N = torch.cat([k.new_zeros(n - 1), log_weights.exp()])
    return weights_N.expand(rewards_P_N.shape)


def _counts(
    values_P_N: torch.Tensor, others_P_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the prompt's others that are smaller, and that are not larger.

    There is one count of each kind for every value, [P, N] each.
    """
    ascending_P_M, values_P_N = others_P_M.sort().values, values_P_N.contiguous()
    smaller_P_N = torch.searchsorted(ascending_P_M, values_P_N)
    return smaller_P_N, torch.searchsorted(ascending_P_M, values_P_N, right=True)


def _refuse_nan(rewards_P_N: torch.Tensor) -> None:
    if rewards_P_N.isnan().any():
        prompt, sample = (int(index) for index in rewards_P_N.isnan().nonzero()[0])
        raise InputError(
            f"prompt {prompt}, response {sample} has the reward NaN, which cannot be compared: "
            "fix the reward"
        )
