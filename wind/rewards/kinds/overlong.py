"""Overlong rewards: a penalty for responses that come close to a length."""

from typing import Literal

import numpy as np

from wind.config.models import InferenceConfig
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds.base import Judge, RewardKind, scalar_judge
from wind.rewards.penalties import overlong
from wind.stages import Progress
from wind.store.datasets import Store


class Overlong(RewardKind):
    """DAPO's soft overlong punishment, in tokens of the policy."""

    kind: Literal["overlong"] = "overlong"
    max_tokens: int
    cache_tokens: int

    @property
    def reads_tokens(self) -> bool:
        """True."""
        return True

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return a judge that counts tokens."""
        return scalar_judge(self, None)

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return the penalty of each row; a truncated one counts as `max_tokens` long."""
        tokens_B = np.array([len(each) for each in rows.token_ids], dtype=np.int64)
        tokens_B[np.array(rows.is_truncated, dtype=bool)] = self.max_tokens
        progress(len(rows), len(rows))
        return {
            "reward": overlong(tokens_B, max_tokens=self.max_tokens, cache_tokens=self.cache_tokens)
        }
