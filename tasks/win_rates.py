"""Estimate the win rates of responses against their siblings."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.store.handles import Dataset
from wind.win_rates import WinRatesSpec


@dataset_task
def estimate_win_rates(spec: WinRatesSpec) -> Dataset:
    """Estimate how often each response beats the others to its prompt."""
    return compute("win_rates", spec)
