"""Run one on-policy training from spec to published datasets and models."""

import time
from collections.abc import Mapping

import pyarrow as pa

from wind.fingerprints import digest
from wind.generations import check_fits
from wind.rollouts import RolloutsSpec, rank, schema_of
from wind.stages import Place, Progress, Shard
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset
from wind.store.provenance import provenance
from wind.training import numbers
from wind.training.assignments import Trained
from wind.training.runs import (
    as_table,
    finish,
    fit,
    held_work_folder,
    publish_trained,
    publish_verified,
)


def sample_and_train(spec: RolloutsSpec, store: Store, place: Place, progress: Progress) -> Shard:
    """Return the rollouts that trained the policy.

    The shard's output `training` has the numbers of the training. Raises TrainingError if it
    diverged.
    """
    from wind.rollouts.fresh import ANCHOR, as_steps, read_rollouts, rollouts_files, train_prompts

    started = time.time()
    prompts = train_prompts(spec, store)
    check_fits(store.path(spec.policy), prompts, spec.sampling)
    with held_work_folder(spec, store) as work:
        trained = fit(spec, store, work, place, rank, progress)
        refreshes = [
            read_rollouts(path)
            for path in rollouts_files(work, spec, max(step for step, _, _ in trained.rows))
        ]
        probe, _ = as_steps(refreshes[-1], prompts, spec)
        models = publish_trained(spec, store, work, place, probe, trained, started)
        if ANCHOR in trained.probe_logps:
            logps, precision = trained.probe_logps[ANCHOR], spec.inference.dtype
            models["anchor"] = publish_verified(
                spec, store, work / ANCHOR, place, probe, logps, precision, started
            )
        training = _publish_training(spec, store, trained, models, started)
        finish(store, work, place, models["model"])
    return Shard(
        pa.concat_tables(refreshes), schema=schema_of(spec), outputs={"training": training}
    )


def _publish_training(
    spec: RolloutsSpec,
    store: Store,
    trained: Trained,
    models: Mapping[str, AnyHandle],
    started: float,
) -> Dataset:
    """Publish the numbers of the optimizer steps, with the trained models.

    The dataset is like that of a training on stored rows.
    """
    fields = spec.model_dump(mode="json")
    table = as_table(trained.rows)
    with store.partial(
        "training", digest(["rollouts", fields, trained.model_dump(mode="json")])
    ) as partial:
        partial.write(0, table)
        return partial.publish(
            1,
            parents=spec.parents(),
            outputs=models,
            computed_by={"stage": "rollouts", "spec": fields},
            numbers=numbers(spec, table),
            provenance=provenance(store, started),
        )
