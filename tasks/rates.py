"""Fit the rates of the contextual-bandit study."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.rates import RatesSpec
from wind.store.handles import Dataset


@dataset_task
def fit_rates(spec: RatesSpec) -> Dataset:
    """Fit contraction factors, floors and slopes to the trajectories."""
    return compute("rates", spec)
