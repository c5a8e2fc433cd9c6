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
# Newton's method cannot overshoot by steps that change all logits by less than this.
SAFE = 1.0
TOLERANCE = 1e-9


def fit(
    design_R_D: Floats, wins_B_R: Floats, losses_B_R: Floats, start_D: Floats | None = None
) -> Floats:
    """Return the coefficients [B, D] of logit P(win) = design x coefficients.

    Each of the B fits maximizes sum_r wins_r log p_r + losses_r log (1 - p_r) - |w|^2 / (2
    VARIANCE), which is strictly concave; a Newton step that would lower it is halved. `start_D` is
    where all begin, by default at zero.
    """
    coefficients_B_D: Floats = np.zeros((len(wins_B_R), design_R_D.shape[1]))
    if start_D is not None:
        coefficients_B_D += start_D
    total_B_R = wins_B_R + losses_B_R
    largest_D = np.abs(design_R_D).max(axis=0)
    for _ in range(STEPS):
        chances_B_R = _sigmoid(coefficients_B_D @ design_R_D.T)
        gradient_B_D = (wins_B_R - total_B_R * chances_B_R) @ design_R_D
        gradient_B_D -= coefficients_B_D / VARIANCE
        hessian_B_D_D = _hessian(design_R_D, total_B_R * chances_B_R * (1 - chances_B_R))
        solved_B_D_1 = np.linalg.solve(hessian_B_D_D, gradient_B_D[:, :, None])
        step_B_D: Floats = solved_B_D_1[:, :, 0].astype(np.float64, copy=False)
        if (np.abs(step_B_D) @ largest_D).max() > SAFE:
            step_B_D = _halved(design_R_D, wins_B_R, losses_B_R, coefficients_B_D, step_B_D)
        coefficients_B_D += step_B_D
        if np.abs(step_B_D).max() < TOLERANCE:
            break
    return coefficients_B_D


def _hessian(design_R_D: Floats, curvature_B_R: Floats) -> Floats:
    """Return sum_r curvature_r x_r x_r^T of each fit, and the prior's part, [B, D, D]."""
    rows, features = design_R_D.shape
    products_R_DD = (design_R_D[:, :, None] * design_R_D[:, None, :]).reshape(rows, -1)
    summed_B_D_D = (curvature_B_R @ products_R_DD).reshape(-1, features, features)
    hessian: Floats = summed_B_D_D + np.eye(features) / VARIANCE
    return hessian


def _halved(
    design_R_D: Floats,
    wins_B_R: Floats,
    losses_B_R: Floats,
    coefficients_B_D: Floats,
    step_B_D: Floats,
) -> Floats:
    """Return the steps, each halved until it lowers its loss."""
    loss_B = _loss(design_R_D, wins_B_R, losses_B_R, coefficients_B_D)
    for _ in range(HALVINGS):
        next_B = _loss(design_R_D, wins_B_R, losses_B_R, coefficients_B_D + step_B_D)
        is_worse_B = next_B > loss_B
        if not is_worse_B.any():
            break
        step_B_D = np.where(is_worse_B[:, None], step_B_D / 2, step_B_D)
    return step_B_D


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
