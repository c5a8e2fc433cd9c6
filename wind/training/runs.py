"""One training from spec to published model: where its work folder is, which processes run it, what is checked at the end.

One rank on a CPU trains in this process, which may be a warm worker that has everything imported: that takes a second, where new
processes take many. More ranks, any GPU, and ZeRO-3 get processes of their own under torchrun, whose end gives all memory back.
"""

import shutil
import time
from pathlib import Path

import pyarrow as pa

from wind.datasets import Model, Store
from wind.fingerprints import code_digest, digest
from wind.provenance import packages, provenance
from wind.stages import Place, Progress, Shard
from wind.training import COMPUTED_BY, TrainingSpec
from wind.training.assignments import Assignment, Row
from wind.training.checkpoints import latest_checkpoint
from wind.training.processes import train_in_ranks
from wind.training.rank import train_here


def train(spec: TrainingSpec, store: Store, place: Place, progress: Progress) -> Shard:
    """The rows of the training dataset, with what was published as outputs: the model and, where one was trained, the adapter.

    Raises TrainingError if it diverged.
    """
    started = time.time()
    work = work_folder(spec, store)
    work.mkdir(parents=True, exist_ok=True)
    for abandoned in work.glob("ranks-*"):
        shutil.rmtree(abandoned)
    assignment = Assignment(
        spec=spec,
        root=str(store.root.resolve()),
        work=str(work.resolve()),
        device=place.device,
        checkpoint=latest_checkpoint(work),
    )
    # ZeRO-3 replaces torch's own linear function for the rest of a process.
    is_alone = spec.training.ranks == 1 and place.device == "cpu" and spec.training.zero_stage < 3
    trained = (train_here if is_alone else train_in_ranks)(assignment, progress)
    outputs = _publish(spec, store, work, place, trained.probe_logps, started)
    shutil.rmtree(work)
    return Shard(table=_table(trained.rows), outputs=outputs)


def work_folder(spec: TrainingSpec, store: Store) -> Path:
    """Where checkpoints of `spec` are kept: other code and other packages have another folder, and never go on with these."""
    key = digest([spec.model_dump(mode="json"), code_digest(COMPUTED_BY), packages()])
    return store.root / "partial" / "training-checkpoints" / key


def _publish(spec: TrainingSpec, store: Store, work: Path, place: Place, probe: list[float], started: float) -> dict[str, Model]:
    from wind.training.batches import load_rows
    from wind.training.export import ADAPTER, EXPORT, verify_export

    start, training = store.path(spec.policy), spec.training
    rows = load_rows(spec, store)
    verify_export(work / EXPORT, start, rows, training.micro_prompts, probe, training.precision, place.device)
    return {
        name: store.publish_model(
            work / folder,
            parents=spec.parents(),
            computed_by={"stage": "training", "spec": spec.model_dump(mode="json")},
            provenance=provenance(started),
        )
        for name, folder in (("model", EXPORT), ("adapter", ADAPTER))
        if (work / folder).is_dir()
    }


def _table(rows: list[Row]) -> pa.Table:
    steps, metrics, values = zip(*sorted(rows), strict=True)
    return pa.table({"step": pa.array(steps, pa.int32()), "metric": list(metrics), "value": list(values)})
