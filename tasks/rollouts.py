"""Train the next policy on its own fresh samples."""

from tasks.caching import dataset_task
from tasks.run import current_run
from tasks.stages import compute
from wind.rollouts import RolloutsSpec
from wind.store.handles import Dataset


@dataset_task
def train_on_rollouts(spec: RolloutsSpec) -> Dataset:
    """Train the next policy while it samples.

    The dataset has one row per response; the training is an output of it.
    """
    return compute("rollouts", spec)


def training_of(rollouts: Dataset) -> Dataset:
    """Return the training dataset of `rollouts`.

    It holds the numbers of the training that drew the rollouts.
    """
    here = current_run()
    if rollouts.fingerprint in here.planned:
        return Dataset(name="training", fingerprint=rollouts.fingerprint, rows=0)
    training = here.store.manifest(rollouts).outputs["training"]
    assert isinstance(training, Dataset)
    return training
