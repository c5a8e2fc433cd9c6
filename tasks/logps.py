"""Score sampled responses under the frozen policies."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.logps import LogpsSpec
from wind.store.handles import Dataset


@dataset_task
def score_logps(spec: LogpsSpec) -> Dataset:
    """Compute the log-probability of every response under the policy and the reference."""
    return compute("logps", spec)
