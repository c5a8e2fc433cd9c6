"""Solutions of regularized games, by Newton's method, and distances from them."""

from typing import Final

import torch

from wind.errors import InputError
from wind.games.preferences import Preferences, is_constant_sum, times
from wind.games.updates import wind_update

# of the fixed point, in nats: a tenth of what callers are promised
TOLERANCE: Final = 1e-11
# ratio of consecutive regularization strengths on the way down to the wanted one
CONTINUATION: Final = 4.0
# Newton steps per strength: three at beta = 1, some hundred in all at 1e-3, up to a thousand at
# 1e-4
STEPS: Final = 2000
# of a Newton step, before its gain counts as lost in rounding
HALVINGS: Final = 30
# entries of the preference matrices that are solved at once: 32 MiB each
BLOCK: Final = 2**22


def solve(ref_P_Y: torch.Tensor, preferences: Preferences, *, beta: float) -> torch.Tensor:
    """Return the solution pi* of the regularized game, [P, Y], nats.

        pi*(y) ~ pi_ref(y) exp(P*(y) / beta)                                          (MATH 2.3a)

    `ref_P_Y` is the reference, log-probabilities in nats, and `beta` the regularization strength.
    The `residual` of the solution is below 1e-10 for every prompt, and its error in nats of about
    that size. Mirror steps would need log(1/error) / beta^2 rounds; this is Newton's method, with
    regularization strengths that lead down to `beta`. It cannot fail but for rounding (see
    `_newton`), which begins to matter below beta = 1e-4. Prompts are solved in blocks of bounded
    memory.

    Raises InputError unless beta > 0, the reference is float64 and the preferences are
    constant-sum, and if rounding keeps the residual above 1e-10.
    """
    if not beta > 0:
        raise InputError(
            f"the game is not regularized with beta = {beta}, "
            "and may have no unique solution: use beta > 0"
        )
    if ref_P_Y.dtype != torch.float64:
        raise InputError(
            f"ref_P_Y is {ref_P_Y.dtype}, too coarse for a solution to {TOLERANCE:g} nats: "
            "pass ref_P_Y.double()"
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
            f"the game of prompt {prompt} is solved to {value:.1e} nats only: "
            f"beta = {beta} is too small for float64"
        )
    return logp_P_Y


def residual(
    logp_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, preferences: Preferences, *, beta: float
) -> torch.Tensor:
    """Return the policy's distance from the best response to itself, [P], nats.

    The response is regularized; the distance is the largest |difference| of a log-probability.
    """
    response_P_Y = wind_update(logp_P_Y, ref_P_Y, preferences, beta=beta, eta=torch.inf)
    # -inf equals -inf
    return torch.where(logp_P_Y == response_P_Y, 0.0, logp_P_Y - response_P_Y).abs().amax(-1)


def kl(logp_P_Y: torch.Tensor, logq_P_Y: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q), [P], nats.

    It is inf where p gives a response that q does not.
    """
    terms_P_Y = logp_P_Y.exp() * (logp_P_Y - logq_P_Y)
    # rounding may leave -1e-17
    return torch.where(logp_P_Y.isneginf(), 0.0, terms_P_Y).sum(-1).clamp_min(0)


def duality_gap(
    logp_P_Y: torch.Tensor, ref_P_Y: torch.Tensor, preferences: Preferences, *, beta: float
) -> torch.Tensor:
    """Return the gain of the regularized best response over the policy, [P].

    It is what the best response to pi earns against pi beyond what pi earns, in units of win rate:
    >= 0, and zero at the solution only. The definition is

        beta log sum_y pi_ref exp(P_pi / beta) - [<pi, P_pi> - beta KL(pi || pi_ref)]  (MATH 2.10),

    computed as the equal beta KL(pi || best response), which does not subtract large terms. For
    constant-sum preferences the gap of both sides is twice this.
    """
    return beta * kl(
        logp_P_Y, wind_update(logp_P_Y, ref_P_Y, preferences, beta=beta, eta=torch.inf)
    )


def _solved(
    ref_P_Y: torch.Tensor, matrix_P_Y_Y: torch.Tensor, beta: float, first: int
) -> torch.Tensor:
    """Solve one block of prompts, whose first has the number `first`."""
    constant_P = is_constant_sum(matrix_P_Y_Y)
    if not constant_P.all():
        prompt = first + int(constant_P.logical_not().nonzero()[0])
        raise InputError(
            f"the preferences of prompt {prompt} are not constant-sum, "
            "so that its game may have several solutions"
        )
    skew_P_Y_Y = matrix_P_Y_Y - 0.5
    margin_P_Y = times(skew_P_Y_Y, ref_P_Y.exp())
    strength = beta
    while strength * CONTINUATION < 1:
        strength *= CONTINUATION
    while strength > beta:
        # only a starting point for the next strength
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
    """Return the margins of the solution, [P, Y].

    The margins are v = P* - 1/2, the root of F(v) = v - A pi(v), pi(v) ~ pi_ref exp(v / beta),
    where A = P - 1/2 is skew. The Jacobian is I - A C / beta with C the covariance
    diag(pi) - pi pi'. It is never singular: from u = A C u / beta follows u'C u = (C u)'A (C u) /
    beta = 0, so C u = 0, so u = 0. Newton's direction therefore always lowers |F|^2, |F| bounds v
    because A pi is bounded, and halving the step until |F|^2 falls in proportion converges from
    anywhere, quadratically at the end.

    Margins instead of win rates: on the responses that pi* gives they are of the order of beta, and
    v / beta keeps its digits.
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
            # Armijo's rule
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
    """Return the policy pi(v), and F(v) = v - A pi(v)."""
    policy_P_Y = (ref_P_Y + margin_P_Y / beta).softmax(-1)
    return policy_P_Y, margin_P_Y - times(skew_P_Y_Y, policy_P_Y)
