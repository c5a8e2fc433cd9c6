"""Signs of the health of the policy that an iteration ends with."""

from collections.abc import Mapping
from typing import Any

from tasks.checks import checked
from tasks.health import examine_health
from tasks.logps import score_logps
from tasks.run import current_run
from wind.config.recipe import DistillConfig
from wind.health import HealthSpec
from wind.logps import LogpsSpec
from wind.store.handles import Dataset, Model


def examine(
    config: DistillConfig,
    held_out: Mapping[str, Dataset],
    *,
    prompts: Dataset,
    previous: Model,
    reference: Model,
    against: Model,
) -> Dataset:
    """Examine the held-out responses of a policy that was evaluated `against` another.

    `previous` is the policy that its iteration began with, and `reference` what regularized the
    update.
    """
    inputs: dict[str, Any] = {"prompts": prompts, "generations": held_out["eval_generations"]}

    def scored(purpose: str, model: Model) -> Dataset | None:
        if model == against:
            return None  # the evaluation has scored the responses under it
        with current_run().beside(purpose):
            spec = LogpsSpec.of(config, inputs, policy=model, reference=model)
            return checked(score_logps(spec))

    logps_previous = scored("previous", previous)
    logps_reference = logps_previous if reference == previous else scored("reference", reference)
    spec = HealthSpec(
        generations=held_out["eval_generations"],
        logps=held_out["eval_logps"],
        logps_previous=logps_previous,
        logps_reference=logps_reference,
    )
    return checked(examine_health(spec))
