"""Measure the metrics of an iteration."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.metrics import MetricsSpec
from wind.store.handles import Dataset


@dataset_task
def measure_metrics(spec: MetricsSpec) -> Dataset:
    """Measure the metrics of the iteration.

    Each number comes with its 95% interval over prompts, where it has one.
    """
    return compute("metrics", spec)
