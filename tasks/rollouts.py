"""The training of the next policy on its own fresh samples."""

from tasks.caching import dataset_task
from tasks.running import running
from tasks.stages import compute
from wind.config.models import InferenceConfig
from wind.config.objectives import ObjectiveConfig
from wind.config.rewards import WinRateConfig
from wind.config.sampling import SamplingConfig
from wind.config.training import TrainingConfig
from wind.rewards import Reward
from wind.rollouts import RolloutsSpec
from wind.store.handles import Dataset, Model


@dataset_task
def train_on_policy(
    policy: Model,
    reference: Model,
    rate: float,
    prompts: Dataset,
    reward: Reward,
    sampling: SamplingConfig,
    inference: InferenceConfig,
    win_rate: WinRateConfig,
    objective: ObjectiveConfig,
    training: TrainingConfig,
    seed: int,
    iteration: int,
    parts: int,
) -> Dataset:
    """One row is one response that trained the policy; the training, with the model it made, is the
    dataset's output.
    """
    spec = RolloutsSpec(
        policy=policy,
        reference=reference,
        rate=rate,
        prompts=prompts,
        reward=reward,
        sampling=sampling,
        inference=inference,
        win_rate=win_rate,
        objective=objective,
        training=training,
        seed=seed,
        iteration=iteration,
        parts=parts,
    )
    return compute("rollouts", spec)


def training_of(rollouts: Dataset) -> Dataset:
    """The numbers of the training that `rollouts` were drawn in."""
    here = running()
    if rollouts.fingerprint in here.planned:
        return Dataset(name="training", fingerprint=rollouts.fingerprint, rows=0)
    training = here.store.manifest(rollouts).outputs["training"]
    assert isinstance(training, Dataset)
    return training
