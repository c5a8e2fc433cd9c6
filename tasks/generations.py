"""The responses that a policy samples."""

from typing import Literal

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.models import InferenceConfig
from wind.config.sampling import SamplingConfig
from wind.generations import GenerationsSpec
from wind.store.handles import Dataset, Model


@dataset_task
def sample_generations(
    policy: Model,
    prompts: Dataset,
    split: Literal["train", "eval"],
    sampling: SamplingConfig,
    inference: InferenceConfig,
    seed: int,
    iteration: int,
    parts: int = 1,
) -> Dataset:
    """One row is one response of `policy` to a prompt of `split`; of the train split, to those of
    the iteration's part.
    """
    spec = GenerationsSpec(
        policy=policy,
        prompts=prompts,
        split=split,
        sampling=sampling,
        inference=inference,
        seed=seed,
        iteration=iteration,
        parts=parts,
    )
    return compute("generations", spec)
