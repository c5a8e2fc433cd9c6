"""Run the contextual-bandit study."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.bandit import BanditSpec
from wind.store.handles import Dataset


@dataset_task
def play_bandits(spec: BanditSpec) -> Dataset:
    """Play every algorithm on every instance.

    The dataset has one row per iteration and metric.
    """
    return compute("bandit", spec)
