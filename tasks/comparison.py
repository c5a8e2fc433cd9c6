"""The numbers of several runs, side by side."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.comparison import ComparisonSpec, Iteration
from wind.store.handles import Dataset


@dataset_task
def tabulate(iterations: tuple[Iteration, ...]) -> Dataset:
    """One row is one number of one iteration of one run."""
    return compute("comparison", ComparisonSpec(iterations=iterations))
