"""Evaluation: any checkpoint against any reference on held-out prompts, through the same tasks that
a run trains with.
"""

from dataclasses import dataclass

from flows.given import Given
from tasks.checks import checked
from tasks.evaluation import compare_policies
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.rewards import score_rewards
from wind.evaluation import resolve_match
from wind.store.handles import Dataset, Model


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation read and wrote."""

    generations: Dataset
    rewards: Dataset
    logps: Dataset
    evaluation: Dataset


def evaluate(given: Given, policy: Model, reference: Model) -> Evaluation:
    """`policy` against `reference` on the eval split; the reference's side is the same for every
    iteration.
    """
    config, prompts, reward, before = given.config, given.prompts, given.reward, given.before
    sampling = config.sampling.model_copy(
        update={"samples_per_prompt": config.evaluation.samples_per_prompt}
    )
    inference, seed = config.inference, config.seed
    ours = checked(
        sample_generations(policy, prompts, "eval", sampling, inference, seed, given.iteration),
        before.get("eval_generations"),
    )
    theirs = checked(sample_generations(reference, prompts, "eval", sampling, inference, seed, 0))
    if reward.gives_preferences:
        our_rewards = checked(
            score_rewards(prompts, ours, reward, inference, opponents=theirs),
            before.get("eval_rewards"),
        )
        their_rewards = None
    else:
        our_rewards = checked(
            score_rewards(prompts, ours, reward, inference), before.get("eval_rewards")
        )
        their_rewards = checked(score_rewards(prompts, theirs, reward, inference))
    logps = checked(score_logps(prompts, ours, policy, reference, inference))
    match = resolve_match(config.evaluation)
    evaluation = checked(
        compare_policies(
            prompts,
            ours,
            theirs,
            our_rewards,
            their_rewards,
            logps,
            config.evaluation.content(),
            match,
        ),
        before.get("evaluation"),
    )
    return Evaluation(ours, our_rewards, logps, evaluation)
