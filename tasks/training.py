"""Train the next policy on stored samples."""

from tasks.caching import dataset_task
from tasks.run import current_run
from tasks.stages import compute
from wind.fingerprints import digest
from wind.store.handles import Dataset, Model
from wind.training import TrainingSpec


@dataset_task
def train_policy(spec: TrainingSpec) -> Dataset:
    """Train the next policy.

    The dataset has one row per step and metric; the model is its output.
    """
    return compute("training", spec)


def trained_model(training: Dataset) -> Model:
    """Return the model that `training` produced."""
    here = current_run()
    if training.fingerprint in here.planned:
        return Model(fingerprint=training.fingerprint, parameters=0)
    model = here.store.manifest(training).outputs["model"]
    assert isinstance(model, Model)
    return model


def moved_anchor(training: Dataset, reference: Model) -> Model:
    """Return the moving average of `reference` that `training` left.

    If none moved, this is the reference itself.
    """
    here = current_run()
    if training.fingerprint in here.planned:
        return Model(fingerprint=digest(["anchor", training.fingerprint]), parameters=0)
    anchor = here.store.manifest(training).outputs.get("anchor", reference)
    assert isinstance(anchor, Model)
    return anchor
