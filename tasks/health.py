"""Examine the health of a policy's responses."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.health import HealthSpec
from wind.store.handles import Dataset


@dataset_task
def examine_health(spec: HealthSpec) -> Dataset:
    """Look for signs of drift and collapse in every held-out response of the policy."""
    return compute("health", spec)
