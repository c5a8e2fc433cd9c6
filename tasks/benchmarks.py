"""Ask a policy the questions of benchmarks."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.benchmarks import BenchmarksSpec
from wind.store.handles import Dataset


@dataset_task
def ask_benchmarks(spec: BenchmarksSpec) -> Dataset:
    """Ask the policy the questions of one benchmark, or put finished ones together."""
    return compute("benchmarks", spec)
