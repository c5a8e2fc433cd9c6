"""Train the next policy on stored samples."""

from tasks.caching import dataset_task
from tasks.run import current_run
from tasks.stages import compute
from wind.fingerprints import digest
from wind.store.handles import Dataset, Model
from wind.training import TrainingSpec


@dataset_task
def train_policy(spec: TrainingSpec) -> Dataset:
    """Train the next policy: one row per step and number; the model is the dataset's output."""
    return compute("training", spec)


def trained_model(training: Dataset) -> Model:
    """The model that `training` made."""
    here = current_run()
    if training.fingerprint in here.planned:
        return Model(fingerprint=training.fingerprint, parameters=0)
    model = here.store.manifest(training).outputs["model"]
    assert isinstance(model, Model)
    return model


def moved_anchor(training: Dataset, reference: Model) -> Model:
    """The moving average that `training` left of a `reference`; the reference itself where none
    moved.
    """
    here = current_run()
    if training.fingerprint in here.planned:
        return Model(fingerprint=digest(["anchor", training.fingerprint]), parameters=0)
    anchor = here.store.manifest(training).outputs.get("anchor", reference)
    assert isinstance(anchor, Model)
    return anchor
