"""Evaluate a policy against a reference."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.evaluation import EvaluationSpec
from wind.store.handles import Dataset


@dataset_task
def evaluate_policy(spec: EvaluationSpec) -> Dataset:
    """Compare the policy's held-out responses with the reference's, row by row."""
    return compute("evaluation", spec)
