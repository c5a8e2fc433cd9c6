"""The contextual-bandit study."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.bandit import BanditSpec
from wind.config.bandit import BanditSection
from wind.store.handles import Dataset


@dataset_task
def play_bandits(bandit: BanditSection, seed: int) -> Dataset:
    """One row is one number of one algorithm on one instance at one iteration."""
    return compute("bandit", BanditSpec(bandit=bandit, seed=seed))
