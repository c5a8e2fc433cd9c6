"""Computation of a task's dataset.

Light stages run in this process, all others in a worker.
"""

import time
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.checks import prepare_checks
from tasks.devices import device_of
from tasks.pages import if_the_server_answers
from tasks.run import current_run
from tasks.workers import kind_of
from wind.code.digests import code_digest, code_of, source_of
from wind.config.recipe import DistillConfig
from wind.config.runs import RunConfig
from wind.endpoints import connections
from wind.stages import Job, Place, Spec, published, run, stage_named
from wind.store.handles import Dataset

SECONDS_BETWEEN_UPDATES = 2.0


def compute(stage: str, spec: Spec) -> Dataset:
    """Compute the dataset of `spec`.

    Workers compute it, or this process if the stage is light. A plan computes nothing: the returned
    handle stands for a dataset that is not known yet, and is the same for every task with the same
    job.
    """
    here = current_run()
    place = Place(
        root=here.store.address,
        device=device_of(here.config),
        pin_set=here.store.pin_set,
        keep_state=here.config.retention.optimizer_states > 0,
        same_packages=here.config.cache.packages == "key",
        function_seconds=_function_seconds(here.config, stage),
        connections=connections(),
    )
    job = Job(
        stage=stage,
        spec=spec.model_dump(mode="json"),
        place=place,
        code=code_digest(stage),
        modules=code_of(f"wind.{stage}") | {f"tasks.{stage}": source_of(f"tasks.{stage}")},
    )
    if here.planning:
        if not here.is_refreshed(stage) and (found := published(job)) is not None:
            return found
        here.planned[job.key()] = job
        return Dataset(name=stage, fingerprint=job.key(), rows=0)
    made = _computed(job)
    here.keys[made] = job.key()
    return made


def _function_seconds(config: RunConfig, stage: str) -> float | None:
    """Return the time limit of the user's function in `stage`.

    It is the number of seconds that one call may take.
    """
    role = stage_named(stage).role
    if role is None or not isinstance(config, DistillConfig):
        return None
    reward = config.reward_sections()[current_run().judge]
    return role.function_seconds(config.model_copy(update={"reward": reward}))


def _computed(job: Job) -> Dataset:
    here, stage, kind = current_run(), job.stage, kind_of(job)

    def find(job: Job) -> Dataset | None:
        """Find what another run published while this one waited for the lock."""
        found = None if here.is_refreshed(stage) else published(job)
        if found is not None:
            here.taken.add(found.fingerprint)
        return found

    with here.terminal.bar(stage) as bar:
        if kind is None:
            return run(job, bar, find)
        prepare_checks()
        artifact = ProgressArtifact(stage)

        def progress(done: float, total: float) -> None:
            bar(done, total)
            artifact.update(done, total)

        return here.pool.compute(job, kind, progress, find)


class ProgressArtifact:
    """Progress of a stage in the Prefect UI.

    Stages that end at once create no artifact.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._told = time.monotonic()
        self._id: UUID | None = None

    def update(self, done: float, total: float) -> None:
        """Show that `done` of `total` is finished, at most every two seconds."""
        if time.monotonic() - self._told < SECONDS_BETWEEN_UPDATES:
            return
        self._told = time.monotonic()
        percent = 100 * done / max(total, 1)
        with if_the_server_answers():
            if self._id is None:
                made: Any = create_progress_artifact(
                    percent,
                    key=self._stage.replace("_", "-"),
                    description=f"shards of {self._stage}",
                )
                self._id = made
            else:
                update_progress_artifact(self._id, percent)
