"""Choose the responses to train on."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.selections import SelectionsSpec
from wind.store.handles import Dataset


@dataset_task
def select_rows(spec: SelectionsSpec) -> Dataset:
    """Assign every response its role in training."""
    return compute("selections", spec)
