"""Read stored responses to the held-out prompts."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.responses import ResponsesSpec
from wind.store.handles import Dataset


@dataset_task
def load_responses(spec: ResponsesSpec) -> Dataset:
    """Find the held-out prompt that each stored response belongs to."""
    return compute("responses", spec)
