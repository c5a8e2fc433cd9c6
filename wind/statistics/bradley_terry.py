"""Bradley-Terry ratings (Bradley and Terry 1952; Hunter 2004).

Player i beats player j with probability sigmoid(r_i - r_j). The ratings r maximize the likelihood
of the wins, a logistic regression in which each pair of players is one row; a tie is half a win for
each. Only differences count, so the first player's rating is 0. A weak prior (see
`wind.statistics.logistic`) keeps the rating of a player finite who never lost.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from wind.statistics.bootstrap import Floats, interval, multiplicities, resamples
from wind.statistics.logistic import fit

# Elo points per logit
ELO: Final = 400 / math.log(10)

# value and the two ends of its interval, in logits
Estimate = tuple[float, float | None, float | None]


def bradley_terry(
    pairs_C: Sequence[tuple[int, int]],
    shares_P_C: Floats,
    players: int,
    samples: int,
    generator: np.random.Generator,
) -> list[Estimate]:
    """Estimate each player's rating, in logits above player 0.

    Pair c is of two players; `shares_P_C` is the first one's share of wins on each prompt, ties one
    half, in [0, 1], or NaN where the pair did not meet. Every prompt counts once for each pair. The
    95% intervals are of `samples` resamples of prompts; player 0, and any player on fewer than two
    prompts, has none.
    """
    design_C_D = _design(pairs_C, players)
    met_P_C = ~np.isnan(shares_P_C)
    wins_P_C = np.where(met_P_C, shares_P_C, 0.0)
    losses_P_C = np.where(met_P_C, 1 - shares_P_C, 0.0)
    every_1_P = np.ones((1, len(shares_P_C)))
    (best_D,) = fit(design_C_D, every_1_P @ wins_P_C, every_1_P @ losses_P_C)
    if len(shares_P_C) < 2:
        return [(0.0, None, None), *((float(value), None, None) for value in best_D)]
    fitted = []
    for chosen_B_P in resamples(len(shares_P_C), samples, generator, players * len(pairs_C)):
        times_B_P = multiplicities(chosen_B_P)
        fitted.append(fit(design_C_D, times_B_P @ wins_P_C, times_B_P @ losses_P_C, best_D))
    fitted_B_D = np.concatenate(fitted)
    rated = [
        (float(value), *interval(fitted_B_D[:, place], float(value)))
        for place, value in enumerate(best_D)
    ]
    return [(0.0, None, None), *rated]


def _design(pairs_C: Sequence[tuple[int, int]], players: int) -> Floats:
    """Return a row per pair, +1 for its first player and -1 for its second.

    Player 0 has no column: its rating is 0.
    """
    design_C_K = np.zeros((len(pairs_C), players))
    for row, (first, second) in enumerate(pairs_C):
        design_C_K[row, first] += 1.0
        design_C_K[row, second] -= 1.0
    return design_C_K[:, 1:]
