"""Win rates of responses against their siblings."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.rewards import WinRateConfig
from wind.store.handles import Dataset
from wind.win_rates import WinRatesSpec


@dataset_task
def estimate_win_rates(rewards: Dataset, win_rate: WinRateConfig) -> Dataset:
    """One row is one response against the other responses to its prompt."""
    return compute("win_rates", WinRatesSpec(rewards=rewards, win_rate=win_rate))
