"""Faults planted in a known-good reward, to study reward hacking.

They show how far an algorithm drives up the reward while the true objective falls behind. A fault
depends only on the prompt and the text of the response, never on its batch or sample number: equal
responses to a prompt keep equal rewards, and every run sees the same faults.
"""

import numpy as np

from wind.config.rewards import CorruptionConfig
from wind.fingerprints import digest
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds.base import RewardModel
from wind.stages import Progress


def corrupted(rewards_B: Floats, rows: Responses, corruption: CorruptionConfig) -> Floats:
    """Return `k r + bias c + noise z` for each row.

    The shape is [B], the unit that of the reward. r is the row's reward in `rewards_B`, and c the
    number of characters in its response. k is 0 for a share `sparsity` of all responses and 1 for
    the others; z is standard normal. Both are drawn from a hash of the seed, the prompt and the
    response.
    """
    draws = [
        _draw(corruption.seed, prompt_id, response)
        for prompt_id, response in zip(rows.prompt_ids, rows.responses, strict=True)
    ]
    uniform_B, normal_B = np.array(draws).reshape(-1, 2).T
    characters_B = np.array([len(response) for response in rows.responses], dtype=np.float64)
    kept_B = np.where(uniform_B < corruption.sparsity, 0.0, rewards_B)
    values_B: Floats = kept_B + corruption.bias * characters_B + corruption.noise * normal_B
    return values_B


def _draw(seed: int, prompt_id: str, response: str) -> tuple[float, float]:
    """Draw a uniform number in [0, 1) and a standard normal one."""
    generator = np.random.default_rng(int(digest([seed, prompt_id, response]), 16))
    return generator.random(), generator.standard_normal()


class CorruptedReward:
    """A `RewardModel` with planted faults."""

    def __init__(self, model: RewardModel, corruption: CorruptionConfig) -> None:
        self._model = model
        self._corruption = corruption

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return the columns of the reward: `reward` with faults, the components without."""
        columns = self._model.rewards(rows, progress)
        return columns | {"reward": corrupted(columns["reward"], rows, self._corruption)}
