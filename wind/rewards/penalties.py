"""Penalties: for responses that come close to a length, and for repetition.

Both are 0 for a response that needs none, and at least -1, so that weights in a mix say how much
they count beside other rewards.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from wind.rewards.functions import Floats


def overlong(tokens_B: npt.NDArray[np.int64], *, max_tokens: int, cache_tokens: int) -> Floats:
    """Return the soft overlong punishment of responses of `tokens_B` tokens.

    DAPO's R_length (arXiv 2503.14476, eq. 13): 0 up to `max_tokens - cache_tokens`, then linear,
    and -1 from `max_tokens` on.
    """
    left_B = max_tokens - cache_tokens - tokens_B
    punishments: Floats = np.clip(left_B / cache_tokens, -1.0, 0.0)
    return punishments


def repetition(units: Sequence[Hashable], n: int) -> float:
    """Return minus the share of n-grams of `units` that occurred before.

    As the penalty of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373,
    appendix C.2) that open-r1's `get_repetition_penalty_reward` gives a whole response: the number
    of distinct n-grams over the number of all, minus 1. Fewer than `n` units give 0.
    """
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    return (len(set(grams)) - len(grams)) / len(grams) if grams else 0.0
