"""Evaluation of a model alone, without a training.

It is published as a version of a run of its own: iteration 0, which begins and ends with the model.
So everything that shows, verifies, compares or exports versions works on it.
"""

from pathlib import Path

from prefect import flow

from flows.evaluate import Evaluator, Policies
from flows.matches import once_checked
from tasks.checks import checked
from tasks.prompts import load_prompts
from tasks.run import current_run
from tasks.sources import import_opponent, import_policy, import_prompts, import_reward
from tasks.versions import publish_version
from wind.config.evaluation import (
    EvaluationSection,
    ModelOpponentConfig,
    VersionOpponentConfig,
)
from wind.config.models import PolicyConfig
from wind.config.recipe import DistillConfig
from wind.prompts import read_by
from wind.store.references import REFERENCE
from wind.store.versions import Version

# what the opponent is called whose tokens are not the model's
AGAINST = "against"


@flow(name="evaluate", flow_run_name="{config.run}", persist_result=False)
def evaluate_alone(config: DistillConfig, model: str, against: str | None) -> Version:
    """Evaluate `model` on the held-out prompts of `config`, and publish its version.

    Both are models or versions of the store. The held-out prompts are those of the recipe, named by
    its own policy's tokenizer. `against` is by default that policy, and no one if that is the
    model. Where both models read prompts as the same tokens, it is the reference, with a KL
    divergence to it; elsewhere it is one more opponent.
    """
    policy = import_opponent("MODEL", _named(model, config.policy))
    base = policy if model == config.policy.path else import_policy(config.policy)
    compared = _named(against or config.policy.path, config.policy)
    other = base if against is None else import_opponent("--against", compared)
    reward = import_reward(config.reward)
    asked = read_by(import_prompts(config.prompts, base, config.seed), policy)
    prompts = checked(load_prompts(asked))
    with current_run().beside(AGAINST):
        theirs = once_checked(load_prompts(read_by(asked, other)))
    reads_alike = theirs == prompts
    reference = other if reads_alike else policy
    is_alone = reference == policy
    further = {} if reads_alike else {AGAINST: compared}
    # The only iteration is the last one, after which every benchmark is due.
    update = {"evaluation": _of_models(config, further), "iterations": 1}
    config = config.model_copy(update=update)
    evaluator = Evaluator.of(config, asked, prompts, reward, is_alone=is_alone)
    held_out = evaluator.evaluate(0 if is_alone else 1, policy, Policies.only(reference))
    metrics = evaluator.measure(0, held_out, is_alone=is_alone)
    version = publish_version(
        0,
        {"prompts": prompts, **held_out, "metrics": metrics},
        model_in=policy,
        model_out=policy,
        reference=reference,
    )
    assert version is not None, "an evaluation is never only planned"
    return version


def _named(name: str, policy: PolicyConfig) -> ModelOpponentConfig | VersionOpponentConfig:
    """Return how `name` names a model: a version of the store, a folder, or a Hub id.

    The recipe's own `policy` is meant at its revision.
    """
    if REFERENCE.fullmatch(name) and not Path(name).exists():
        return VersionOpponentConfig(kind="version", version=name)
    revision = policy.revision if name == policy.path else None
    return ModelOpponentConfig(kind="model", path=name, revision=revision)


def _of_models(
    config: DistillConfig, further: dict[str, ModelOpponentConfig | VersionOpponentConfig]
) -> EvaluationSection:
    """Return the evaluation with `further` opponents, and without those that only a run has."""
    section = config.evaluation
    opponents = {name: each for name, each in section.opponents.items() if each.kind != "policy"}
    if left_out := [name for name in section.opponents if name not in opponents]:
        current_run().terminal.line(
            f"left out, as policies of a run: evaluation.opponents.{', '.join(left_out)}"
        )
    return section.model_copy(update={"opponents": opponents | further})
