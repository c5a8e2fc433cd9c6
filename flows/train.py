"""One iteration's training, on samples drawn before or during it."""

from collections.abc import Mapping
from typing import Any

from tasks.checks import checked
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.rewards import score_rewards
from tasks.rollouts import train_on_rollouts, training_of
from tasks.selections import select_rows
from tasks.training import train_policy
from tasks.win_rates import estimate_win_rates
from wind.config.recipe import DistillConfig
from wind.generations import GenerationsSpec
from wind.logps import LogpsSpec
from wind.rewards import Reward, RewardsSpec
from wind.rollouts import RolloutsSpec, refuse_taken
from wind.selections import SelectionsSpec
from wind.store.handles import Dataset, Model
from wind.training import TrainingSpec
from wind.win_rates import WinRatesSpec


def train(
    config: DistillConfig,
    iteration: int,
    *,
    prompts: Dataset,
    reward: Reward,
    policy: Model,
    reference: Model,
) -> dict[str, Dataset]:
    """Train `policy` on the train split.

    Returns the resulting datasets by noun. `training` is always among them: its manifest names the
    trained model.
    """
    inputs: dict[str, Any] = {"prompts": prompts, "reward": reward}
    inputs |= {"policy": policy, "reference": reference}
    inputs |= {"split": "train", "iteration": iteration, "parts": config.prompts.parts}
    if config.objective.steps_per_refresh is not None:
        return _on_fresh_samples(config, inputs)
    return _on_stored_samples(config, inputs)


def _on_stored_samples(config: DistillConfig, inputs: Mapping[str, Any]) -> dict[str, Dataset]:
    made: dict[str, Any] = dict(inputs)
    made["generations"] = checked(sample_generations(GenerationsSpec.of(config, made)))
    made["rewards"] = checked(score_rewards(RewardsSpec.of(config, made)))
    made["win_rates"] = checked(estimate_win_rates(WinRatesSpec.of(config, made)))
    made["selections"] = checked(select_rows(SelectionsSpec.of(config, made)))
    made["logps"] = checked(score_logps(LogpsSpec.of(config, made)))
    made["training"] = checked(train_policy(TrainingSpec.of(config, made)))
    return {name: made[name] for name in made if name not in inputs}


def _on_fresh_samples(config: DistillConfig, inputs: Mapping[str, Any]) -> dict[str, Dataset]:
    refuse_taken(inputs["reward"])
    # The training ranks sample here, whichever backend samples elsewhere.
    sampling = config.sampling.model_copy(update={"backend": "transformers"})
    rate = config.reference.rate or 0.0
    spec = RolloutsSpec.of(config, inputs, sampling=sampling, rate=rate)
    rollouts = checked(train_on_rollouts(spec))
    return {"rollouts": rollouts, "training": checked(training_of(rollouts))}
