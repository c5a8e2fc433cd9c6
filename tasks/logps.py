"""The log-probabilities of sampled responses under the frozen policies."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.models import InferenceConfig
from wind.logps import LogpsSpec
from wind.store.handles import Dataset, Model


@dataset_task
def score_logps(
    prompts: Dataset,
    generations: Dataset,
    policy: Model,
    reference: Model,
    inference: InferenceConfig,
) -> Dataset:
    """One row is one response under `policy` and under `reference`."""
    spec = LogpsSpec(
        prompts=prompts,
        generations=generations,
        policy=policy,
        reference=reference,
        inference=inference,
    )
    return compute("logps", spec)
