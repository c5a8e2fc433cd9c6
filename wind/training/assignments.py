"""What a rank is told, where it stands among the others, and what the ranks leave behind."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from wind.training import TrainingSpec

Row = tuple[int, str, float]  # step, metric, value: as in the dataset


class Checkpoint(BaseModel):
    """A usable checkpoint: optimiser steps done, the rows of those steps, and where the engine's state is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    rows: list[Row]
    folder: str


class Assignment(BaseModel):
    """One training, as its ranks get it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: TrainingSpec
    root: str
    work: str  # folder for checkpoints and the export
    device: str  # cpu | cuda
    checkpoint: Checkpoint | None  # where to go on


class Trained(BaseModel):
    """The rows of the dataset, and the log-probabilities of the probe under the trained weights (those of the export folder)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: list[Row]
    probe_logps: list[float]


@dataclass(frozen=True)
class World:
    """One process among the ranks."""

    rank: int
    ranks: int
    device: str  # "cpu", or "cuda:0"
