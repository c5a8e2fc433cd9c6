"""Games between policies over finite response sets, solved exactly.

The games are WIND's, those of its relatives, and that of iterative best of n.

A prompt has Y responses and a preference P(y, y'), the probability that y beats y'. WIND (arXiv
2410.20727) plays the symmetric game of value E P(y > y') - beta KL(pi || pi_ref), where pi draws y
and the opponent y'. Its solution is unique for beta > 0 when P is constant-sum,
P(y, y') + P(y', y) = 1, transitive or not (MATH 2.3). The printed paper was not available: update,
solution and rates are those derived in MATH 2.1-2.5, 2.10 and 5.2-5.3.

All updates have one form, `step`, and differ in its weights and score (MATH 6). Policies are
normalized log-probabilities in nats, float64, [P, Y]; axis suffixes and the meaning of -inf are
those of `wind.best_of_n`.
"""

from wind.games.preferences import (
    MatrixPreferences,
    Preferences,
    RewardPreferences,
    is_constant_sum,
)
from wind.games.solutions import duality_gap, kl, residual, solve
from wind.games.updates import (
    Strengths,
    inpo_update,
    log_win_rate_update,
    mixed_best_of_n,
    mixed_exponent,
    mixing_strengths,
    nash_md_update,
    sppo_update,
    step,
    wind_update,
)

__all__ = [
    "MatrixPreferences",
    "Preferences",
    "RewardPreferences",
    "Strengths",
    "duality_gap",
    "inpo_update",
    "is_constant_sum",
    "kl",
    "log_win_rate_update",
    "mixed_best_of_n",
    "mixed_exponent",
    "mixing_strengths",
    "nash_md_update",
    "residual",
    "solve",
    "sppo_update",
    "step",
    "wind_update",
]
