"""Length-controlled win rates (AlpacaEval 2, Dubois et al., arXiv 2404.04475).

Judges like long answers. The win rate that remains at equal length is that of a logistic regression
of the preference on who answered and on the difference of the lengths:

    logit P(policy wins) = theta + phi tanh(d / s),

with d the policy's length minus the opponent's and s its standard deviation. At d = 0 it predicts
sigmoid(theta), the length-controlled win rate. Win rates between 0 and 1, of ties and of several
opponents, count as that share of a win.

Limits. AlpacaEval's model has a third term, the difficulty of each instruction, which it estimates
from many models; one pair of policies cannot tell it from chance, and it is left out. What goes
along with length without being caused by it, such as a complete answer, is discounted with it. And
with responses of nearly one length, or a policy that is longer on every prompt, theta and phi are
told apart only by the form of the curve: the interval is then wide, and says so.
"""

import numpy as np

from wind.statistics.bootstrap import Floats, Integers, interval, multiplicities, resamples
from wind.statistics.logistic import chance, fit


def length_controlled_win_rate(
    win_rates_R: Floats,
    length_differences_R: Floats,
    prompts_R: Integers,
    samples: int,
    generator: np.random.Generator,
) -> tuple[float, float | None, float | None]:
    """Estimate the win rate at equal lengths and its 95% bootstrap interval.

    Each row is one response: its win rate in [0, 1], its length minus its opponents' mean, and the
    number of its prompt, from 0. The unit of length does not matter. Each of the `samples`
    resamples of prompts is fitted anew. Fewer than two prompts have no interval.
    """
    design_R_2 = np.column_stack([np.ones(len(win_rates_R)), scaled(length_differences_R)])
    weights_R = np.ones(len(win_rates_R))
    (best_2,) = fit(design_R_2, *_shares(weights_R[None], win_rates_R))
    value = chance(best_2[0])
    prompts = int(prompts_R.max()) + 1
    if prompts < 2:
        return value, None, None
    controlled_B = []
    for chosen_B_P in resamples(prompts, samples, generator, 4 * len(win_rates_R)):
        weights_B_R = multiplicities(chosen_B_P)[:, prompts_R]
        fitted_B_2 = fit(design_R_2, *_shares(weights_B_R, win_rates_R), start_D=best_2)
        controlled_B += [chance(theta) for theta in fitted_B_2[:, 0]]
    return value, *interval(np.array(controlled_B), value)


def scaled(length_differences_R: Floats) -> Floats:
    """Return tanh of the differences in their standard deviations; 0 where all are equal.

    They are not centered: equal lengths stay at zero.
    """
    deviation = float(length_differences_R.std())
    if deviation == 0:
        return np.zeros(len(length_differences_R))
    values: Floats = np.tanh(length_differences_R / deviation)
    return values


def _shares(weights_B_R: Floats, win_rates_R: Floats) -> tuple[Floats, Floats]:
    return weights_B_R * win_rates_R, weights_B_R * (1 - win_rates_R)
