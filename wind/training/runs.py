"""Run one training from spec to published model.

A single rank on a CPU trains in this process, which may be a warm worker with everything imported:
that takes a second, where new processes take many. More ranks, any GPU, and ZeRO-3 get processes of
their own under torchrun, whose end returns all memory.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa

from wind.code.digests import code_digest
from wind.code.observed import Observed, note
from wind.code.packages import packages
from wind.files import lock
from wind.fingerprints import digest
from wind.stages import Place, Progress, Shard
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Model
from wind.store.layout import CHECKPOINTS, FINISHED
from wind.store.provenance import provenance
from wind.store.storage import LocalStorage
from wind.training import FitSpec, TrainingSpec, rank
from wind.training.assignments import OBSERVED, Assignment, Row, Trained
from wind.training.checkpoints import latest_checkpoint
from wind.training.processes import train_in_ranks
from wind.training.shared_checkpoints import drop_checkpoints, fetch_checkpoint

if TYPE_CHECKING:
    from wind.training.batches import Rows


def train(spec: TrainingSpec, store: Store, place: Place, progress: Progress) -> Shard:
    """Train `spec` and return the rows of its dataset.

    The shard's outputs are what was published: the model and, if one was trained, the adapter.
    Raises TrainingError if the training diverged.
    """
    from wind.training.batches import load_rows

    started = time.time()
    with held_work_folder(spec, store) as work:
        trained = fit(spec, store, work, place, rank, progress)
        outputs = publish_trained(
            spec, store, work, place, load_rows(spec, store), trained, started
        )
        finish(store, work, place, outputs["model"])
    return Shard(table=as_table(trained.rows), outputs=outputs)


def fit(
    spec: FitSpec, store: Store, work: Path, place: Place, module: ModuleType, progress: Progress
) -> Trained:
    """Train `spec` in the folder `work`, from its last checkpoint.

    `module` is the one that the ranks import.
    """
    work.mkdir(parents=True, exist_ok=True)
    for abandoned in work.glob("ranks-*"):
        shutil.rmtree(abandoned)
    fetch_checkpoint(store, work)
    _go_on(work)
    assignment = Assignment[FitSpec](
        spec=spec,
        root=store.address,
        work=str(work.resolve()),
        device=place.device,
        checkpoint=latest_checkpoint(work),
        keep_state=place.keep_state,
        function_seconds=place.function_seconds,
        connections=place.connections,
    )
    # ZeRO-3 replaces torch's own linear function for the rest of a process.
    is_alone = spec.training.ranks == 1 and place.device == "cpu" and spec.training.zero_stage < 3
    if is_alone:
        return rank.train_here(assignment, module.open_source, progress)
    return train_in_ranks(assignment, module.__name__, progress)


def _go_on(work: Path) -> None:
    """Note what the rows of an unfinished training were made with.

    If any of it has changed since, empty the folder instead.
    """
    before = {
        path: Observed.model_validate_json(path.read_bytes()) for path in work.rglob(f"*{OBSERVED}")
    }
    if any(observed.changed() for observed in before.values()):
        shutil.rmtree(work)
        work.mkdir()
        return
    for path, observed in before.items():
        note(path, observed)


def work_folder(spec: FitSpec, store: Store) -> Path:
    """Return this machine's folder for checkpoints of `spec`.

    It depends on the code and packages too, so that other versions never resume from them.
    """
    key = digest([spec.model_dump(mode="json"), code_digest(spec.stage), packages()])
    return store.local / CHECKPOINTS / key


@contextmanager
def held_work_folder(spec: FitSpec, store: Store) -> Iterator[Path]:
    """Lock the work folder of `spec` against garbage collection for the block."""
    work = work_folder(spec, store)
    work.mkdir(parents=True, exist_ok=True)
    name_of_lock = work.with_name(f"{work.name}.lock")
    with lock(name_of_lock):
        yield work
        name_of_lock.unlink(missing_ok=True)


def finish(store: Store, work: Path, place: Place, model: AnyHandle) -> None:
    """Remove the checkpoints of a finished training, or keep its last one.

    With `place.keep_state` the last one stays, from which `model` can be rebuilt.
    """
    if not place.keep_state:
        drop_checkpoints(store, work)
    else:
        for ended in work.glob("ranks-*"):
            shutil.rmtree(ended)
        store.storage.write(
            f"{CHECKPOINTS}/{work.name}/{FINISHED}",
            json.dumps({"model": model.fingerprint}).encode(),
        )
    if not place.keep_state or not isinstance(store.storage, LocalStorage):
        shutil.rmtree(work)


def publish_trained(
    spec: FitSpec,
    store: Store,
    work: Path,
    place: Place,
    rows: "Rows",
    trained: Trained,
    started: float,
) -> dict[str, AnyHandle]:
    """Publish the trained model, and its adapter if one was trained.

    The model is verified on the first of `rows`.
    """
    from wind.training.export import ADAPTER, EXPORT

    precision = spec.training.precision
    model = publish_verified(
        spec, store, work / EXPORT, place, rows, trained.probe_logps[EXPORT], precision, started
    )
    adapter = (
        {"adapter": _publish(spec, store, work / ADAPTER, started)}
        if (work / ADAPTER).is_dir()
        else {}
    )
    return {"model": model, **adapter}


def publish_verified(
    spec: FitSpec,
    store: Store,
    folder: Path,
    place: Place,
    rows: "Rows",
    probe: list[float],
    precision: str,
    started: float,
) -> Model:
    """Publish the model in `folder` once its probe log-probabilities are verified.

    The probe is the first of `rows`, and `probe` the log-probabilities it should get.
    """
    from wind.training.export import verify_export

    verify_export(
        folder,
        store.path(spec.policy),
        rows,
        spec.training.micro_prompts,
        probe,
        precision,
        place.device,
    )
    return _publish(spec, store, folder, started)


def _publish(spec: FitSpec, store: Store, folder: Path, started: float) -> Model:
    return store.publish_model(
        folder,
        parents=spec.parents(),
        computed_by={"stage": "training", "spec": spec.model_dump(mode="json")},
        provenance=provenance(store, started),
    )


def as_table(rows: list[Row]) -> pa.Table:
    """Return the training dataset, sorted by its key."""
    steps, metrics, values = zip(*sorted(rows), strict=True)
    return pa.table(
        {"step": pa.array(steps, pa.int32()), "metric": list(metrics), "value": list(values)}
    )
