"""The evaluation of a policy against a reference."""

from tasks.caching import dataset_task
from tasks.stages import compute
from wind.config.evaluation import EvaluationConfig
from wind.evaluation import EvaluationSpec
from wind.store.handles import Dataset


@dataset_task
def compare_policies(
    prompts: Dataset,
    generations_policy: Dataset,
    generations_reference: Dataset,
    rewards_policy: Dataset,
    rewards_reference: Dataset | None,
    logps: Dataset,
    evaluation: EvaluationConfig,
    match: str,
) -> Dataset:
    """One row is one held-out prompt and sample, the policy's response beside the reference's;
    `match` digests the gold check.
    """
    spec = EvaluationSpec(
        prompts=prompts,
        generations_policy=generations_policy,
        generations_reference=generations_reference,
        rewards_policy=rewards_policy,
        rewards_reference=rewards_reference,
        logps=logps,
        evaluation=evaluation,
        match_digest=match,
    )
    return compute("evaluation", spec)
