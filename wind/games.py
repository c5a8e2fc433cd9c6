"""Games between policies over finite response sets, solved exactly: WIND, its relatives, and
iterative best of n.

A prompt has Y responses and a preference P(y, y'), the probability that y beats y'. WIND (arXiv
2410.20727) plays the symmetric game of value E P(y > y') - beta KL(pi || pi_ref), pi and the
opponent drawing y and y'; its solution is unique for beta > 0 when P is constant-sum, P(y, y') +
P(y', y) = 1, transitive or not (MATH 2.3). The printed paper was not available: update, solution
and rates are those derived in MATH 2.1-2.5, 2.10 and 5.2-5.3.

All updates have one form, `step`, and differ in its weights and score (MATH 6). Policies are
normalised log-probabilities in nats, float64, [P, Y]; axis suffixes and the meaning of -inf are
those of `wind.best_of_n`.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch

from wind.best_of_n import RewardOrder, best_of_n
from wind.errors import InputError

TOLERANCE: Final = 1e-11  # of the fixed point, in nats: a tenth of what callers are promised
CONTINUATION: Final = 4.0  # ratio of the regularisation strengths that lead down to the wanted one
# of Newton, per strength: three at beta = 1, some hundred in all at 1e-3, up to a thousand at 1e-4
STEPS: Final = 2000
HALVINGS: Final = 30  # of a Newton step before what it gains counts as lost in rounding
BLOCK: Final = 2**22  # entries of the preference matrices solved at once: 32 MiB each


# -------------------------------------------------------------------------------------- preferences


class Preferences(Protocol):
    """Who beats whom, for each prompt of a batch."""

    def win_rates(self, policy_P_Y: torch.Tensor) -> torch.Tensor:
        """E_{y' ~ pi} P(y, y') for every response y, from the policy's probabilities; [P, Y]."""
        ...

    def matrix(self, prompts: slice = ...) -> torch.Tensor:
        """P(y, y') at [prompt, y, y'], of these prompts."""
        ...


@dataclass(frozen=True)
class RewardPreferences:
    """The higher reward wins. Ties count one half, or with `inclusive` as wins for both.

    One half is constant-sum (MATH 0.1, convention 1). `inclusive` makes the win rate the CDF p_<=
    that best of n is written in (convention 2); it is not constant-sum, as every response beats
    itself. Win rates are differences of cumulative sums in the order of rewards, so that they cost
    O(Y) after one sort, where the matrix costs O(Y^2).
    """

    order: RewardOrder
    inclusive: bool = False

    @classmethod
    def of(cls, rewards_P_Y: torch.Tensor, *, inclusive: bool = False) -> "RewardPreferences":
        """The preferences of `rewards_P_Y`. Raises InputError for a NaN reward."""
        return cls(RewardOrder.of(rewards_P_Y), inclusive)

    def win_rates(self, policy_P_Y: torch.Tensor) -> torch.Tensor:
        """p_<= if `inclusive`, else (p_< + p_<=) / 2."""
        # [P, Y + 1]
        cumulative = torch.nn.functional.pad(
            policy_P_Y.gather(-1, self.order.ascending).cumsum(-1), (1, 0)
        )
        not_better_P_Y = cumulative.gather(-1, self.order.upto)
        return (
            not_better_P_Y
            if self.inclusive
            else (cumulative.gather(-1, self.order.below) + not_better_P_Y) / 2
        )

    def matrix(self, prompts: slice = slice(None)) -> torch.Tensor:
        """1{r > r'} + 1{r = r'} / 2, or 1{r >= r'} if `inclusive`."""
        rank = self.order.below[prompts]
        wins, ties = (
            compare(rank[..., :, None], rank[..., None, :]).to(torch.float64)
            for compare in (torch.gt, torch.eq)
        )
        return wins + (ties if self.inclusive else ties / 2)


@dataclass(frozen=True)
class MatrixPreferences:
    """Any preferences, transitive or not, as a dense [P, Y, Y] of probabilities. Raises InputError
    for anything else.
    """

    values: torch.Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[-1] != self.values.shape[-2]:
            raise InputError(
                f"preferences must be one square matrix per prompt, not of shape {tuple(self.values.shape)}"
            )
        if not ((self.values >= 0) & (self.values <= 1)).all():  # also catches NaN
            raise InputError("a preference is not a probability: it must lie in [0, 1]")

    def win_rates(self, policy_P_Y: torch.Tensor) -> torch.Tensor:
        """P @ pi."""
        return _times(self.values, policy_P_Y)

    def matrix(self, prompts: slice = slice(None)) -> torch.Tensor:
        """The values."""
        return self.values[prompts]


def is_constant_sum(matrix_P_Y_Y: torch.Tensor) -> torch.Tensor:
    """Whether P(y, y') + P(y', y) = 1 for all responses of a prompt, hence P(y, y) = 1/2; [P], to
    1e-9.
    """
    return ((matrix_P_Y_Y + matrix_P_Y_Y.mT - 1).abs() <= 1e-9).all(-1).all(-1)


# ------------------------------------------------------------------------------------------ updates


def step(
    logp_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    score_P_Y: torch.Tensor,
    *,
    keep: float,
    pull: float,
    gain: float,
) -> torch.Tensor:
    """The policy in proportion to pi^keep pi_ref^pull exp(gain score), the form of every update
    here (MATH 6); [P, Y].

    A factor of power zero counts for nothing, even where it is -inf.
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
    """The exact WIND update pi^lam pi_ref^(1-lam) exp(eta lam P_t), lam = 1 / (1 + beta eta) (MATH
    2.4a).

    It is the mirror step argmax <pi, P_t> - beta KL(pi || pi_ref) - KL(pi || pi_t) / eta. For
    constant-sum preferences and eta <= 4 beta each step shrinks KL(pi* || pi) by 1 / (1 + beta eta)
    or more (MATH 2.5). eta = inf, for beta > 0, is the regularised best response to pi_t, whose
    fixed point is the solution.
    """
    lam, gain = _mirror(beta, eta)
    return step(
        logp_P_Y, ref_P_Y, preferences.win_rates(logp_P_Y.exp()), keep=lam, pull=1 - lam, gain=gain
    )


def sppo_update(logp_P_Y: torch.Tensor, preferences: Preferences, *, eta: float) -> torch.Tensor:
    """SPPO's exact update pi exp(eta P_t) (arXiv 2405.00675, eq. 4.1): WIND's without a reference,
    beta = 0.
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
    """INPO's update pi^(1 - tau/eta) pi_ref^(tau/eta) exp(P_t / eta) (arXiv 2407.00617, eq. 5); its
    eta is an inverse step.

    WIND's with beta = tau and the step 1 / (eta - tau) (MATH 5.2).
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
    """Nash-MD's update pi_m exp(eta P(y > pi_m)), its opponent the mixture pi_m of pi^(1 - eta
    beta) pi_ref^(eta beta).

    As in MATH 5.3, for eta beta <= 1; WIND's opponent is pi itself. Both have the same solution as
    their fixed point only in the limit of small steps.
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
    """One round of iterative best of n with mixing, BoN_n(pi)^a1 pi^(1-a1-a2) pi_ref^a2 (MATH 2.1).

    a1 = 1, a2 = 0 is plain iterative best of n. With continuous rewards and from pi_ref, the
    iterates are best of k with k <- k (a1 n + 1 - a1 - a2) + a2 (MATH 2.2), `mixed_exponent`.
    """
    return step(
        logp_P_Y, ref_P_Y, best_of_n(logp_P_Y, order, n), keep=1 - a1 - a2, pull=a2, gain=a1
    )


def mixed_exponent(k: float, *, n: float, a1: float, a2: float) -> float:
    """The k of the next iterate when this one is best of k of the reference, rewards being
    continuous (MATH 2.2).
    """
    return k * (a1 * n + 1 - a1 - a2) + a2


def log_win_rate_update(
    logp_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, order: RewardOrder, *, beta: float, eta: float
) -> torch.Tensor:
    """The mirror step of the game of E log P(y >= pi') - beta KL: WIND's update with the score log
    p_<= (MATH 2.1, 2.2).

    It is `mixed_best_of_n` without the collision factor S, under the names of `mixing_strengths`.
    eta = inf is the map pi_ref p_<=^(1/beta), whose fixed points solve the game: best of beta /
    (beta - 1) for continuous rewards and beta > 1. A finite set may have several for beta < 1, so
    where the iteration ends depends on where it starts.
    """
    lam, gain = _mirror(beta, eta)
    return step(logp_P_Y, ref_P_Y, order.log_cdf(logp_P_Y), keep=lam, pull=1 - lam, gain=gain)


class Strengths(NamedTuple):
    """The regularisation strength beta and the step eta of a mirror step."""

    beta: float
    eta: float


def mixing_strengths(*, n: float, a1: float, a2: float) -> Strengths:
    """The strengths that best of n with mixing amounts to in the log-win-rate game (MATH 2.1); n >
    1, a1 > 0, a2 < 1.
    """
    return Strengths(beta=a2 / ((n - 1) * a1), eta=(n - 1) * a1 / (1 - a2))


# ------------------------------------------------------------------------------------- the solution


def solve(ref_P_Y: torch.Tensor, preferences: Preferences, *, beta: float) -> torch.Tensor:
    """The solution pi* of the regularised game: pi*(y) ~ pi_ref(y) exp(P*(y) / beta) (MATH 2.3a);
    [P, Y], nats.

    Its `residual` is below 1e-10 for every prompt, and its error in nats of about that size. Mirror
    steps would need log(1/error) / beta^2 rounds; this is Newton's method, with regularisation
    strengths that lead down to `beta`. It cannot fail but for rounding (see `_newton`); that begins
    to matter below beta = 1e-4. Prompts are solved in blocks of bounded memory. Raises InputError
    unless beta > 0, the reference is float64 and the preferences are constant-sum, and if rounding
    keeps the residual above 1e-10.
    """
    if not beta > 0:
        raise InputError(
            f"the game is not regularised with beta = {beta}, and may have no unique solution: use beta > 0"
        )
    if ref_P_Y.dtype != torch.float64:
        raise InputError(
            f"ref_P_Y is {ref_P_Y.dtype}, too coarse for a solution to {TOLERANCE:g} nats: pass ref_P_Y.double()"
        )
    prompts, responses = ref_P_Y.shape
    size = max(1, BLOCK // responses**2)
    blocks = [slice(first, first + size) for first in range(0, prompts, size)]
    logp_P_Y = torch.cat(
        [_solved(ref_P_Y[block], preferences.matrix(block), beta, block.start) for block in blocks]
    )
    residual_P = residual(logp_P_Y, ref_P_Y, preferences, beta=beta)
    if not (residual_P < 10 * TOLERANCE).all():
        prompt, value = int(residual_P.argmax()), float(residual_P.max())
        raise InputError(
            f"the game of prompt {prompt} is solved to {value:.1e} nats only: beta = {beta} is too small for float64"
        )
    return logp_P_Y


def residual(
    logp_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, preferences: Preferences, *, beta: float
) -> torch.Tensor:
    """How far the policy is from the regularised best response to itself, the largest |difference|
    of a logp; [P], nats.
    """
    response_P_Y = wind_update(logp_P_Y, ref_P_Y, preferences, beta=beta, eta=torch.inf)
    # -inf equals -inf
    return torch.where(logp_P_Y == response_P_Y, 0.0, logp_P_Y - response_P_Y).abs().amax(-1)


def kl(logp_P_Y: torch.Tensor, logq_P_Y: torch.Tensor) -> torch.Tensor:
    """KL(p || q); [P], nats, inf where p gives a response that q does not."""
    terms_P_Y = logp_P_Y.exp() * (logp_P_Y - logq_P_Y)
    # rounding may leave -1e-17
    return torch.where(logp_P_Y.isneginf(), 0.0, terms_P_Y).sum(-1).clamp_min(0)


def duality_gap(
    logp_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, preferences: Preferences, *, beta: float
) -> torch.Tensor:
    """What the regularised best response to pi earns against pi beyond what pi earns; [P], >= 0,
    zero at the solution only.

    beta log sum_y pi_ref exp(P_pi / beta) - [<pi, P_pi> - beta KL(pi || pi_ref)] (MATH 2.10),
    computed as the equal beta KL(pi || best response), which does not subtract large terms. For
    constant-sum preferences the gap of both sides is twice this.
    """
    return beta * kl(
        logp_P_Y, wind_update(logp_P_Y, ref_P_Y, preferences, beta=beta, eta=torch.inf)
    )


def _mirror(beta: float, eta: float) -> tuple[float, float]:
    """lam = 1 / (1 + beta eta), and eta lam in a form that also holds for eta = inf.

    Raises InputError unless beta >= 0 and eta > 0, and for eta = inf at beta = 0, whose update has
    no limit.
    """
    if not (beta >= 0 and eta > 0 and math.isfinite(beta)):
        raise InputError(
            f"there is no update with beta = {beta} and eta = {eta}: use a finite beta >= 0 and eta > 0"
        )
    if beta == 0 and math.isinf(eta):
        raise InputError(
            "eta = inf is the regularised best response, and beta = 0 regularises nothing: use beta > 0"
        )
    return 1 / (1 + beta * eta), 1 / (beta + 1 / eta)


def _solved(
    ref_P_Y: torch.Tensor, matrix_P_Y_Y: torch.Tensor, beta: float, first: int
) -> torch.Tensor:
    """The solution of one block of prompts, whose first has the number `first`."""
    constant_P = is_constant_sum(matrix_P_Y_Y)
    if not constant_P.all():
        prompt = first + int(constant_P.logical_not().nonzero()[0])
        raise InputError(
            f"the preferences of prompt {prompt} are not constant-sum, so that its game may have several solutions"
        )
    skew_P_Y_Y = matrix_P_Y_Y - 0.5
    margin_P_Y = _times(skew_P_Y_Y, ref_P_Y.exp())
    strength = beta
    while strength * CONTINUATION < 1:
        strength *= CONTINUATION
    while strength > beta:
        # only a start for the next
        margin_P_Y = _newton(margin_P_Y, ref_P_Y, skew_P_Y_Y, strength, 1e-2)
        strength = max(strength / CONTINUATION, beta)
    margin_P_Y = _newton(margin_P_Y, ref_P_Y, skew_P_Y_Y, beta, TOLERANCE)
    return (ref_P_Y + margin_P_Y / beta).log_softmax(-1)


def _newton(
    margin_P_Y: torch.Tensor,
    ref_P_Y: torch.Tensor,
    skew_P_Y_Y: torch.Tensor,
    beta: float,
    tolerance: float,
) -> torch.Tensor:
    """The margins v = P* - 1/2 of the solution, as the root of F(v) = v - A pi(v), pi(v) ~ pi_ref
    exp(v / beta); [P, Y].

    A = P - 1/2 is skew. The Jacobian is I - A C / beta with C the covariance diag(pi) - pi pi'. It
    is never singular: from u = A C u / beta follows u'C u = (C u)'A (C u) / beta = 0, so C u = 0,
    so u = 0. Newton's direction therefore always lowers
    |F|^2, |F| bounds v because A pi is bounded, and halving the step until |F|^2 falls in
    proportion converges from anywhere, quadratically at the end. Margins instead of win rates: on
    the responses that pi* gives they are of the order of beta, and v / beta keeps its digits.
    """
    identity = torch.eye(ref_P_Y.shape[-1], dtype=ref_P_Y.dtype, device=ref_P_Y.device)
    policy_P_Y, error_P_Y = _error(margin_P_Y, ref_P_Y, skew_P_Y_Y, beta)
    for _ in range(STEPS):
        # A common shift of v changes no policy: the spread of F / beta bounds the residual in nats.
        open_P_1 = (
            error_P_Y.amax(-1, keepdim=True) - error_P_Y.amin(-1, keepdim=True) > tolerance * beta
        )
        if not open_P_1.any():
            break
        product_P_Y = (margin_P_Y - error_P_Y)[..., None]  # A pi
        jacobian_P_Y_Y = identity - (skew_P_Y_Y - product_P_Y) * policy_P_Y[..., None, :] / beta
        direction_P_Y = torch.where(open_P_1, torch.linalg.solve(jacobian_P_Y_Y, error_P_Y), 0.0)
        length_P_1 = torch.ones_like(open_P_1, dtype=ref_P_Y.dtype)
        merit_P_1 = error_P_Y.square().sum(-1, keepdim=True)
        for _ in range(HALVINGS):
            trial_P_Y = margin_P_Y - length_P_1 * direction_P_Y
            policy_P_Y, error_P_Y = _error(trial_P_Y, ref_P_Y, skew_P_Y_Y, beta)
            # Armijo
            is_short = (
                error_P_Y.square().sum(-1, keepdim=True) <= (1 - 1e-4 * length_P_1) * merit_P_1
            )
            if (is_short | ~open_P_1).all():
                break
            length_P_1 = torch.where(is_short, length_P_1, length_P_1 / 2)
        margin_P_Y = trial_P_Y
        if not (is_short & open_P_1).any():  # rounding hides what is left to gain
            break
    return margin_P_Y


def _error(
    margin_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, skew_P_Y_Y: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy pi(v) of the margins v, and F(v) = v - A pi(v)."""
    policy_P_Y = (ref_P_Y + margin_P_Y / beta).softmax(-1)
    return policy_P_Y, margin_P_Y - _times(skew_P_Y_Y, policy_P_Y)


def _times(matrix_P_Y_Y: torch.Tensor, vector_P_Y: torch.Tensor) -> torch.Tensor:
    return (matrix_P_Y_Y @ vector_P_Y[..., None])[..., 0]
