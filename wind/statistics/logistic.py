"""Logistic regression by Newton's method, for many weightings of the same rows at once.

A row may be won in part: it counts with its wins on one side and its losses on the other. A weak
Gaussian prior on every coefficient keeps them finite where the rows can be separated, such as where
one side always wins.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# of a coefficient, in logits squared: a standard deviation of 10 logits moves no estimate that a
# few dozen comparisons determine
VARIANCE = 100.0
STEPS = 100
HALVINGS = 30
TOLERANCE = 1e-9


def fit(
    design_R_D: Floats, wins_B_R: Floats, losses_B_R: Floats, start_D: Floats | None = None
) -> Floats:
    """Return the coefficients [B, D] of logit P(win) = design x coefficients.

    Each of the B fits maximizes sum_r wins_r log p_r + losses_r log (1 - p_r) - |w|^2 / (2
    VARIANCE), which is strictly concave; a Newton step that would lower it is halved. `start_D` is
    where all begin, by default at zero.
    """
    coefficients_B_D = np.zeros((len(wins_B_R), design_R_D.shape[1]))
    if start_D is not None:
        coefficients_B_D += start_D
    loss_B = _loss(design_R_D, wins_B_R, losses_B_R, coefficients_B_D)
    total_B_R = wins_B_R + losses_B_R
    prior_D_D = np.eye(design_R_D.shape[1]) / VARIANCE
    for _ in range(STEPS):
        chances_B_R = _sigmoid(coefficients_B_D @ design_R_D.T)
        gradient_B_D = (wins_B_R - total_B_R * chances_B_R) @ design_R_D
        gradient_B_D -= coefficients_B_D / VARIANCE
        curvature_B_R = total_B_R * chances_B_R * (1 - chances_B_R)
        hessian_B_D_D = (
            np.einsum("br,rd,re->bde", curvature_B_R, design_R_D, design_R_D, optimize=True)
            + prior_D_D
        )
        step_B_D = np.linalg.solve(hessian_B_D_D, gradient_B_D[:, :, None])[:, :, 0]
        for _ in range(HALVINGS):
            next_B = _loss(design_R_D, wins_B_R, losses_B_R, coefficients_B_D + step_B_D)
            # at the optimum, rounding decides which of two equal losses is the smaller
            is_worse_B = next_B > loss_B + 1e-12 * (1 + np.abs(loss_B))
            if not is_worse_B.any():
                break
            step_B_D[is_worse_B] /= 2
        coefficients_B_D, loss_B = coefficients_B_D + step_B_D, next_B
        if np.abs(step_B_D).max(initial=0.0) < TOLERANCE:
            break
    return coefficients_B_D


def _loss(
    design_R_D: Floats, wins_B_R: Floats, losses_B_R: Floats, coefficients_B_D: Floats
) -> Floats:
    logits_B_R = coefficients_B_D @ design_R_D.T
    # -log p is the softplus of -logit, and -log (1 - p) is that of the logit, which is larger by it
    softplus_B_R = np.logaddexp(0.0, -logits_B_R)
    fits_B = ((wins_B_R + losses_B_R) * softplus_B_R + losses_B_R * logits_B_R).sum(axis=1)
    loss_B: Floats = fits_B + (coefficients_B_D**2).sum(axis=1) / (2 * VARIANCE)
    return loss_B


def _sigmoid(logits: Floats) -> Floats:
    chances: Floats = 0.5 * (1 + np.tanh(logits / 2))
    return chances


def chance(logit: float) -> float:
    """Return the probability with this logit."""
    return float(_sigmoid(np.array(logit)))
