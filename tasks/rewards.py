"""The rewards of sampled responses."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.models import InferenceConfig
from wind.rewards import Reward, RewardsSpec
from wind.store.handles import Dataset


@dataset_task
def score_rewards(
    prompts: Dataset,
    generations: Dataset,
    reward: Reward,
    inference: InferenceConfig,
    opponents: Dataset | None = None,
) -> Dataset:
    """One row is one response as the reward sees it; a pairwise one beside its siblings, or beside
    the `opponents`' responses.
    """
    spec = RewardsSpec(
        prompts=prompts,
        generations=generations,
        opponents=opponents,
        reward=reward,
        inference=inference,
    )
    return compute("rewards", spec)
