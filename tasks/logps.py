"""The log-probabilities of sampled responses under the frozen policies."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config import InferenceConfig
from wind.handles import Dataset, Model
from wind.logps import LogpsSpec

COMPUTED_BY = ("wind.logps", "wind.sequence_logps", "wind.models", "wind.pretrained")


@dataset_task(*COMPUTED_BY)
def score_logps(prompts: Dataset, generations: Dataset, policy: Model, reference: Model, inference: InferenceConfig) -> Dataset:
    """One row is one response under `policy` and under `reference`."""
    spec = LogpsSpec(prompts=prompts, generations=generations, policy=policy, reference=reference, inference=inference)
    return compute("logps", spec, COMPUTED_BY)
