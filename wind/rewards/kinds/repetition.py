"""Repetition rewards: a penalty for repeated n-grams."""

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from wind.config.models import InferenceConfig
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds.base import Judge, RewardKind, scalar_judge
from wind.rewards.penalties import repetition
from wind.stages import Progress
from wind.store.datasets import Store


class Repetition(RewardKind):
    """Minus the share of repeated n-grams, of words or of the policy's tokens."""

    kind: Literal["repetition"] = "repetition"
    n: int = 3
    unit: Literal["words", "tokens"] = "words"

    @property
    def reads_tokens(self) -> bool:
        """Whether n-grams are of tokens."""
        return self.unit == "tokens"

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return a judge that counts n-grams."""
        return scalar_judge(self, None)

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return the penalty of each row."""
        units: Sequence[Sequence[Hashable]] = (
            rows.token_ids
            if self.unit == "tokens"
            else [response.lower().split() for response in rows.responses]
        )
        progress(len(rows), len(rows))
        return {"reward": np.array([repetition(each, self.n) for each in units])}
