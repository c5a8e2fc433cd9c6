"""Match a policy with its opponents under every judge."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.matches import MatchesSpec
from wind.store.handles import Dataset


@dataset_task
def match_policy(spec: MatchesSpec) -> Dataset:
    """Compare the policy's held-out responses with every opponent's, under every judge."""
    return compute("matches", spec)
