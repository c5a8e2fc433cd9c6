"""Evaluation: any checkpoint against any reference on held-out prompts, through the same tasks that a run trains with."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tasks.checks import checked
from tasks.evaluation import compare_policies
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.rewards import score_rewards
from wind.config import DistillConfig
from wind.datasets import Dataset, Model
from wind.evaluation import resolve_match
from wind.rewards import Pairwise, Reward


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation read and wrote."""

    generations: Dataset
    rewards: Dataset
    logps: Dataset
    evaluation: Dataset


def evaluate(
    config: DistillConfig,
    policy: Model,
    reference: Model,
    prompts: Dataset,
    reward: Reward,
    iteration: int,
    before: Mapping[str, Dataset] = MappingProxyType({}),
) -> Evaluation:
    """`policy` against `reference` on the eval split; the reference's side is the same for every iteration.

    `before` are the datasets of the iteration before, which the checks compare those of `policy` with.
    """
    sampling = config.sampling.model_copy(update={"samples_per_prompt": config.evaluation.samples_per_prompt})
    inference, seed = config.inference, config.seed
    ours = checked(
        sample_generations(policy, prompts, "eval", sampling, inference, seed, iteration), before.get("eval_generations")
    )
    theirs = checked(sample_generations(reference, prompts, "eval", sampling, inference, seed, 0))
    if isinstance(reward, Pairwise):
        our_rewards = checked(score_rewards(prompts, ours, reward, inference, opponents=theirs), before.get("eval_rewards"))
        their_rewards = None
    else:
        our_rewards = checked(score_rewards(prompts, ours, reward, inference), before.get("eval_rewards"))
        their_rewards = checked(score_rewards(prompts, theirs, reward, inference))
    logps = checked(score_logps(prompts, ours, policy, reference, inference))
    match = resolve_match(config.evaluation)
    evaluation = checked(
        compare_policies(prompts, ours, theirs, our_rewards, their_rewards, logps, config.evaluation, match),
        before.get("evaluation"),
    )
    return Evaluation(ours, our_rewards, logps, evaluation)
