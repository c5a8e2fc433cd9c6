"""The prompts of a run, and the models and files from outside that it starts from."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.prompts import PromptsSpec
from wind.store.handles import Dataset


@dataset_task
def load_prompts(spec: PromptsSpec) -> Dataset:
    """One row is one prompt, rendered to token ids and assigned to a split by its hash."""
    return compute("prompts", spec)
