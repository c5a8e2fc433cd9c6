"""Iterative best-of-N distillation, on one screen."""

from collections.abc import Sequence

from prefect import flow

from flows.evaluate import evaluate
from tasks.checks import checked
from tasks.generations import sample_generations
from tasks.logps import score_logps
from tasks.metrics import measure
from tasks.prompts import load_prompts
from tasks.rewards import score_rewards
from tasks.selections import select_rows
from tasks.sources import import_policy, import_prompts, import_reward
from tasks.training import train_policy, trained_model
from tasks.versions import iterations, publish_version
from tasks.win_rates import estimate_win_rates
from wind.config import DistillConfig
from wind.versions import Version


@flow(name="distill", flow_run_name="{config.run}", persist_result=False)
def distill(config: DistillConfig) -> Sequence[Version]:
    """Each iteration the policy learns to win against itself; returns one dataset version per iteration."""
    initial = policy = import_policy(config.policy)
    reward = import_reward(config.reward)
    prompts = checked(load_prompts(import_prompts(config.prompts, initial, config.seed)))
    versions: list[Version] = []
    for iteration in iterations(config.iterations):
        reference = initial if config.reference.kind == "initial" else policy
        generations = checked(
            sample_generations(
                policy, prompts, "train", config.sampling, config.inference, config.seed, iteration, config.prompts.parts
            )
        )
        rewards = checked(score_rewards(prompts, generations, reward, config.inference))
        win_rates = checked(estimate_win_rates(rewards, config.win_rate))
        selections = checked(select_rows(rewards, win_rates, config.win_rate, config.selection, config.seed, iteration))
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
        trained = trained_model(training)
        opponent = initial if config.evaluation.against == "initial" else reference
        held_out = evaluate(config, trained, opponent, prompts, reward, iteration)
        metrics = checked(
            measure(
                held_out.evaluation,
                held_out.generations,
                training,
                rewards,
                win_rates,
                config.evaluation,
                config.seed,
                iteration,
            )
        )
        datasets = {
            "prompts": prompts,
            "generations": generations,
            "rewards": rewards,
            "win_rates": win_rates,
            "selections": selections,
            "logps": logps,
            "training": training,
            "eval_generations": held_out.generations,
            "eval_rewards": held_out.rewards,
            "eval_logps": held_out.logps,
            "evaluation": held_out.evaluation,
            "metrics": metrics,
        }
        publish_version(versions, iteration, datasets, policy, trained, reference)
        policy = trained
    return versions
