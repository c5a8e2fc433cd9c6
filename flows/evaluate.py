"""Evaluation of any policy against any reference.

It goes through the same tasks that a run trains with.
"""

from typing import Any

from tasks.checks import checked
from tasks.evaluation import evaluate_policy
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.rewards import score_rewards
from wind.config.recipe import DistillConfig
from wind.evaluation import EvaluationSpec, resolve_match
from wind.generations import GenerationsSpec
from wind.logps import LogpsSpec
from wind.rewards import Reward, RewardsSpec
from wind.store.handles import Dataset, Model


def evaluate(
    config: DistillConfig,
    iteration: int,
    *,
    prompts: Dataset,
    reward: Reward,
    policy: Model,
    reference: Model,
) -> dict[str, Dataset]:
    """Evaluate `policy` against `reference` on the eval split.

    Returns the datasets by name. The reference's side is the same in every iteration, so its
    datasets are found in the cache.
    """
    samples = config.evaluation.samples_per_prompt
    sampling = config.sampling.model_copy(update={"samples_per_prompt": samples})
    inputs: dict[str, Any] = {"prompts": prompts, "reward": reward}
    inputs |= {"policy": policy, "reference": reference, "split": "eval", "sampling": sampling}

    def sampled(policy: Model, iteration: int) -> Dataset:
        spec = GenerationsSpec.of(config, inputs, policy=policy, iteration=iteration)
        return checked(sample_generations(spec))

    def scored(generations: Dataset, opponents: Dataset | None = None) -> Dataset:
        spec = RewardsSpec.of(config, inputs, generations=generations, opponents=opponents)
        return checked(score_rewards(spec))

    ours, theirs = sampled(policy, iteration), sampled(reference, 0)
    # Preferences over the reference's responses cover both sides.
    is_pairwise = reward.gives_preferences
    our_rewards = scored(ours, opponents=theirs) if is_pairwise else scored(ours)
    their_rewards = None if is_pairwise else scored(theirs)
    logps = checked(score_logps(LogpsSpec.of(config, inputs, generations=ours)))
    spec = EvaluationSpec(
        prompts=prompts,
        generations_policy=ours,
        generations_reference=theirs,
        rewards_policy=our_rewards,
        rewards_reference=their_rewards,
        logps=logps,
        evaluation=config.evaluation.content(),
        match_digest=resolve_match(config.evaluation),
    )
    return {
        "eval_generations": ours,
        "eval_rewards": our_rewards,
        "eval_logps": logps,
        "evaluation": checked(evaluate_policy(spec)),
    }
