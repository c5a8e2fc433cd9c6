"""What one iteration is given: the same for its training and its evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wind.config.recipe import DistillConfig
from wind.rewards import Reward
from wind.store.handles import Dataset


@dataclass(frozen=True)
class Given:
    """What does not change within an iteration; `before` are the datasets of the one before, which
    checks compare with.
    """

    config: DistillConfig
    prompts: Dataset
    reward: Reward
    iteration: int
    before: Mapping[str, Dataset] = field(default_factory=dict)
