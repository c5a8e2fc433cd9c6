"""Score sampled responses."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.rewards import RewardsSpec
from wind.store.handles import Dataset


@dataset_task
def score_rewards(spec: RewardsSpec) -> Dataset:
    """Score every response, or compare it with its siblings or with its opponents' responses."""
    return compute("rewards", spec)
