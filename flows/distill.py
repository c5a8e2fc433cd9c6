"""Iterative best-of-N distillation, on one screen."""

from collections.abc import Sequence

from prefect import flow

from flows.evaluate import evaluate
from flows.given import Given
from flows.train import train
from tasks.checks import checked
from tasks.metrics import measure
from tasks.prompts import load_prompts
from tasks.sources import import_prompts, import_reward
from tasks.training import moved_anchor, trained_model
from tasks.versions import beginning, iterations, publish_version, tell_changes
from wind.config.recipe import DistillConfig
from wind.store.versions import Version


@flow(name="distill", flow_run_name="{config.run}", persist_result=False)
def distill(config: DistillConfig, base: Version | None = None) -> Sequence[Version]:
    """Each iteration the policy learns to win against itself; returns one dataset version per
    iteration, those after `base`.
    """
    begin = beginning(config, base)
    initial, policy, anchor = begin.initial, begin.policy, begin.anchor
    reward = import_reward(config.reward)
    prompts = checked(load_prompts(import_prompts(config.prompts, initial, config.seed)))
    tell_changes(begin, prompts)
    versions: list[Version] = []
    for iteration in iterations(begin, config.iterations):
        reference = {"initial": initial, "previous": policy, "ema": anchor}[config.reference.kind]
        last = versions[-1] if versions else begin.after
        given = Given(config, prompts, reward, iteration, last.content.datasets if last else {})
        trained_on = train(given, policy, reference)
        training = trained_on["training"]
        trained, anchor = trained_model(training), moved_anchor(training, reference)
        opponent = initial if config.evaluation.against == "initial" else reference
        held_out = evaluate(given, trained, opponent)
        metrics = checked(
            measure(
                held_out.evaluation,
                held_out.generations,
                training,
                trained_on.get("rewards"),
                trained_on.get("win_rates"),
                config.evaluation.content(),
                config.seed,
                iteration,
            ),
            given.before.get("metrics"),
        )
        datasets = {
            "prompts": prompts,
            **trained_on,
            "eval_generations": held_out.generations,
            "eval_rewards": held_out.rewards,
            "eval_logps": held_out.logps,
            "evaluation": held_out.evaluation,
            "metrics": metrics,
        }
        publish_version(begin, versions, iteration, datasets, policy, trained, reference)
        policy = trained
    return versions
