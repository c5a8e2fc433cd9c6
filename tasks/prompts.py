"""The prompts of a run, and the models and files from outside that it starts from."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.handles import Dataset
from wind.prompts import PromptsSpec

COMPUTED_BY = ("wind.prompts", "wind.answers", "wind.pretrained", "wind.templates")


@dataset_task(*COMPUTED_BY)
def load_prompts(spec: PromptsSpec) -> Dataset:
    """One row is one prompt, rendered to token ids and assigned to a split by its hash."""
    return compute("prompts", spec, COMPUTED_BY)
