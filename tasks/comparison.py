"""Put the metrics of several runs side by side."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.comparison import ComparisonSpec
from wind.store.handles import Dataset


@dataset_task
def tabulate_comparison(spec: ComparisonSpec) -> Dataset:
    """Tabulate the metrics of several runs.

    The dataset has one row per run, iteration and metric.
    """
    return compute("comparison", spec)
