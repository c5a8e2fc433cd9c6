"""The metrics of an iteration."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.evaluation import EvaluationConfig
from wind.metrics import MetricsSpec
from wind.store.handles import Dataset


@dataset_task
def measure(
    evaluation: Dataset,
    generations: Dataset,
    training: Dataset | None,
    rewards: Dataset | None,
    win_rates: Dataset | None,
    evaluation_config: EvaluationConfig,
    seed: int,
    iteration: int,
) -> Dataset:
    """One row is one number of the iteration, with its 95% interval over prompts where it has one."""
    spec = MetricsSpec(
        evaluation=evaluation,
        generations=generations,
        training=training,
        rewards=rewards,
        win_rates=win_rates,
        evaluation_config=evaluation_config,
        seed=seed,
        iteration=iteration,
    )
    return compute("metrics", spec)
