"""Sample responses from a policy."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.generations import GenerationsSpec
from wind.store.handles import Dataset


@dataset_task
def sample_generations(spec: GenerationsSpec) -> Dataset:
    """Sample N responses to every prompt.

    The dataset has one row per response.
    """
    return compute("generations", spec)
