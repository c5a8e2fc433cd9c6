"""Iterative best-of-N distillation, on one screen."""

from collections.abc import Sequence

from prefect import flow

from flows.evaluate import Evaluator, Policies
from flows.gates import Gatekeeper
from flows.trackers import Audience
from flows.train import train
from tasks.checks import checked
from tasks.prompts import load_prompts
from tasks.run import current_run
from tasks.sources import import_prompts, import_reward
from tasks.training import moved_anchor, trained_model
from tasks.versions import beginning, iterations, kept, publish_version, tell_changes
from wind.config.recipe import DistillConfig
from wind.store.versions import Version


@flow(name="distill", flow_run_name="{config.run}", persist_result=False)
def distill(config: DistillConfig, base: Version | None = None) -> Sequence[Version]:
    """Teach the policy, iteration by iteration, to win against itself.

    Returns one dataset version per iteration, those after `base` where there is one, without those
    that a gate sent back; none in a plan. Raises GateError if a gate stops it.
    """
    audience = Audience(current_run())
    begin = beginning(config, base)
    initial, policy, anchor = begin.initial, begin.policy, begin.anchor
    reward = import_reward(config.reward)
    asked = import_prompts(config.prompts, initial, config.seed)
    prompts = checked(load_prompts(asked))
    tell_changes(begin, prompts)
    evaluator = Evaluator.of(config, asked, prompts, reward)
    gatekeeper, before = Gatekeeper(begin), begin.datasets()
    for iteration in iterations(begin, config.iterations):
        reference = {"initial": initial, "previous": policy, "ema": anchor}[config.reference.kind]
        policies = Policies(initial=initial, previous=policy, reference=reference)
        datasets = train(
            config, iteration, prompts=prompts, reward=reward, policy=policy, reference=reference
        )
        trained = trained_model(datasets["training"])
        anchor = moved_anchor(datasets["training"], reference)
        held_out = evaluator.evaluate(iteration, trained, policies, before)
        metrics = evaluator.measure(iteration, {**datasets, **held_out})
        datasets = {"prompts": prompts, **datasets, **held_out, "metrics": metrics}
        version = publish_version(
            iteration, datasets, model_in=policy, model_out=trained, reference=reference
        )
        audience.tell(version)
        policy, before = trained, held_out
        if (back := gatekeeper.judge(config, version)) is not None:
            config, begin = back
            policy, anchor, before = begin.policy, begin.anchor, begin.datasets()
    return kept()
