"""The training of the next policy."""

from tasks.caching import dataset_task
from tasks.running import running
from tasks.stages import compute
from wind.config.objectives import ObjectiveConfig
from wind.config.training import TrainingConfig
from wind.fingerprints import digest
from wind.store.handles import Dataset, Model
from wind.training import TrainingSpec


@dataset_task
def train_policy(
    policy: Model,
    prompts: Dataset,
    generations: Dataset,
    rewards: Dataset,
    win_rates: Dataset,
    selections: Dataset,
    logps: Dataset,
    objective: ObjectiveConfig,
    training: TrainingConfig,
    seed: int,
    iteration: int,
) -> Dataset:
    """One row is one number of one optimiser step; the model it made is the dataset's output."""
    spec = TrainingSpec(
        policy=policy,
        prompts=prompts,
        generations=generations,
        rewards=rewards,
        win_rates=win_rates,
        selections=selections,
        logps=logps,
        objective=objective,
        training=training,
        seed=seed,
        iteration=iteration,
    )
    return compute("training", spec)


def trained_model(training: Dataset) -> Model:
    """The model that `training` made."""
    here = running()
    if training.fingerprint in here.planned:
        return Model(fingerprint=training.fingerprint, parameters=0)
    model = here.store.manifest(training).outputs["model"]
    assert isinstance(model, Model)
    return model


def moved_anchor(training: Dataset, reference: Model) -> Model:
    """The moving average that `training` left of a `reference`; the reference itself where none
    moved.
    """
    here = running()
    if training.fingerprint in here.planned:
        return Model(fingerprint=digest(["anchor", training.fingerprint]), parameters=0)
    anchor = here.store.manifest(training).outputs.get("anchor", reference)
    assert isinstance(anchor, Model)
    return anchor
