"""Iterative best-of-N distillation, on one screen."""

from collections.abc import Sequence

from prefect import flow

from flows.benchmarks import ask, due
from flows.evaluate import evaluate
from flows.train import train
from tasks.checks import checked
from tasks.metrics import measure_metrics
from tasks.prompts import load_prompts
from tasks.sources import import_benchmarks, import_prompts, import_reward
from tasks.training import moved_anchor, trained_model
from tasks.versions import beginning, iterations, publish_version, tell_changes
from wind.config.recipe import DistillConfig
from wind.metrics import MetricsSpec
from wind.store.versions import Version


@flow(name="distill", flow_run_name="{config.run}", persist_result=False)
def distill(config: DistillConfig, base: Version | None = None) -> Sequence[Version]:
    """Teach the policy, iteration by iteration, to win against itself.

    Returns one dataset version per iteration, those after `base` where there is one; none in a
    plan.
    """
    begin = beginning(config, base)
    initial, policy, anchor = begin.initial, begin.policy, begin.anchor
    reward = import_reward(config.reward)
    benchmarks = import_benchmarks(config.evaluation)
    prompts = checked(load_prompts(import_prompts(config.prompts, initial, config.seed)))
    tell_changes(begin, prompts)
    versions: list[Version] = []
    for iteration in iterations(begin, config.iterations):
        reference = {"initial": initial, "previous": policy, "ema": anchor}[config.reference.kind]
        opponent = initial if config.evaluation.against == "initial" else reference
        datasets = train(
            config, iteration, prompts=prompts, reward=reward, policy=policy, reference=reference
        )
        trained = trained_model(datasets["training"])
        anchor = moved_anchor(datasets["training"], reference)
        held_out = evaluate(
            config, iteration, prompts=prompts, reward=reward, policy=trained, reference=opponent
        )
        held_out |= ask(config, trained, due(config, iteration, benchmarks))
        metrics = checked(
            measure_metrics(
                MetricsSpec(
                    evaluation=held_out["evaluation"],
                    generations=held_out["eval_generations"],
                    training=datasets["training"],
                    rewards=datasets.get("rewards"),
                    win_rates=datasets.get("win_rates"),
                    benchmarks=held_out.get("benchmarks"),
                    evaluation_config=config.evaluation.content(),
                    seed=config.seed,
                    iteration=iteration,
                )
            )
        )
        datasets = {"prompts": prompts, **datasets, **held_out, "metrics": metrics}
        version = publish_version(
            iteration, datasets, model_in=policy, model_out=trained, reference=reference
        )
        versions += [version] if version else []
        policy = trained
    return versions
