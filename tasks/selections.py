"""The choice of the responses that train."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config import WinRateConfig
from wind.handles import Dataset
from wind.objective_config import SelectionConfig
from wind.selections import SelectionsSpec


@dataset_task
def select_rows(
    rewards: Dataset, win_rates: Dataset, win_rate: WinRateConfig, selection: SelectionConfig, seed: int, iteration: int
) -> Dataset:
    """One row is one response and its role in training."""
    spec = SelectionsSpec(
        rewards=rewards, win_rates=win_rates, win_rate=win_rate, selection=selection, seed=seed, iteration=iteration
    )
    return compute("selections", spec)
