"""The training of one iteration: on samples drawn before it, each stage a dataset, or on samples
drawn while it goes on.
"""

from flows.given import Given
from tasks.checks import checked
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.rewards import score_rewards
from tasks.rollouts import train_on_policy, training_of
from tasks.selections import select_rows
from tasks.training import train_policy
from tasks.win_rates import estimate_win_rates
from wind.store.handles import Dataset, Model


def train(given: Given, policy: Model, reference: Model) -> dict[str, Dataset]:
    """Train `policy` on the train split; the datasets that came of it, by their nouns, `training`
    among them.
    """
    on_which = (
        _on_stored_samples
        if given.config.objective.steps_per_refresh is None
        else _on_fresh_samples
    )
    return on_which(given, policy, reference)


def _on_stored_samples(given: Given, policy: Model, reference: Model) -> dict[str, Dataset]:
    config, prompts, reward, iteration, before = (
        given.config,
        given.prompts,
        given.reward,
        given.iteration,
        given.before,
    )
    generations = checked(
        sample_generations(
            policy,
            prompts,
            "train",
            config.sampling,
            config.inference,
            config.seed,
            iteration,
            config.prompts.parts,
        ),
        before.get("generations"),
    )
    rewards = checked(
        score_rewards(prompts, generations, reward, config.inference), before.get("rewards")
    )
    win_rates = checked(estimate_win_rates(rewards, config.win_rate), before.get("win_rates"))
    selections = checked(
        select_rows(rewards, win_rates, config.win_rate, config.selection, config.seed, iteration)
    )
    logps = checked(score_logps(prompts, generations, policy, reference, config.inference))
    training = checked(
        train_policy(
            policy,
            prompts,
            generations,
            rewards,
            win_rates,
            selections,
            logps,
            config.objective,
            config.training,
            config.seed,
            iteration,
        )
    )
    return {
        "generations": generations,
        "rewards": rewards,
        "win_rates": win_rates,
        "selections": selections,
        "logps": logps,
        "training": training,
    }


def _on_fresh_samples(given: Given, policy: Model, reference: Model) -> dict[str, Dataset]:
    config = given.config
    # the ranks sample, whoever else does
    sampling = config.sampling.model_copy(update={"backend": "transformers"})
    rollouts = checked(
        train_on_policy(
            policy,
            reference,
            config.reference.rate or 0.0,
            given.prompts,
            given.reward,
            sampling,
            config.inference,
            config.win_rate,
            config.objective,
            config.training,
            config.seed,
            given.iteration,
            config.prompts.parts,
        ),
        given.before.get("rollouts"),
    )
    return {"rollouts": rollouts, "training": checked(training_of(rollouts))}
