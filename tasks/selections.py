"""The choice of the responses that train."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.objectives import SelectionConfig
from wind.config.rewards import WinRateConfig
from wind.selections import SelectionsSpec
from wind.store.handles import Dataset


@dataset_task
def select_rows(
    rewards: Dataset,
    win_rates: Dataset,
    win_rate: WinRateConfig,
    selection: SelectionConfig,
    seed: int,
    iteration: int,
) -> Dataset:
    """One row is one response and its role in training."""
    spec = SelectionsSpec(
        rewards=rewards,
        win_rates=win_rates,
        win_rate=win_rate,
        selection=selection,
        seed=seed,
        iteration=iteration,
    )
    return compute("selections", spec)
