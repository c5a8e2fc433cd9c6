"""Score sampled responses."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.rewards import RewardsSpec
from wind.store.handles import Dataset


@dataset_task
def score_rewards(spec: RewardsSpec) -> Dataset:
    """Score or compare every response.

    A response gets a score, or is compared with its siblings or its opponents' responses.
    """
    return compute("rewards", spec)
