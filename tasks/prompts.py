"""Load the prompts of a run."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.prompts import PromptsSpec
from wind.store.handles import Dataset


@dataset_task
def load_prompts(spec: PromptsSpec) -> Dataset:
    """Render prompts to token ids and assign them to splits.

    The hash of a prompt decides its split.
    """
    return compute("prompts", spec)
