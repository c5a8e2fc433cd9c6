"""Contraction factors, floors and slopes of the contextual-bandit study."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.bandit import BanditSection
from wind.rates import RatesSpec
from wind.store.handles import Dataset


@dataset_task
def fit_rates(bandit: Dataset, section: BanditSection) -> Dataset:
    """One row is one number that a run, or a family of runs, amounts to."""
    return compute("rates", RatesSpec(bandit=bandit, section=section))
