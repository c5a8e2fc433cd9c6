"""What a rank is told, where it stands among the others, and what the ranks leave behind."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import SerializeAsAny

from wind.records import Record
from wind.training import FitSpec

S = TypeVar("S", bound=FitSpec)
# the end of a file's name in a work folder: what some rows there were made with
OBSERVED = ".observed.json"
Row = tuple[int, str, float]  # step, metric, value: as in the dataset


class Checkpoint(Record):
    """A usable checkpoint: optimiser steps done, the rows of those steps, and where the engine's
    state is.
    """

    steps: int
    rows: list[Row]
    folder: str


class Assignment(Record, Generic[S]):
    """One training, as its ranks get it."""

    spec: SerializeAsAny[S]
    root: str
    work: str  # folder for checkpoints and the export
    device: str  # cpu | cuda
    checkpoint: Checkpoint | None  # where to go on
    keep_state: bool = False  # whether the last step leaves a checkpoint too
    function_seconds: float | None = None  # see Place


class Trained(Record):
    """The rows of the dataset, and by export folder the log-probabilities of the probe under the
    weights that it holds.
    """

    rows: list[Row]
    probe_logps: dict[str, list[float]]


@dataclass(frozen=True)
class World:
    """One process among the ranks."""

    rank: int
    ranks: int
    device: str  # "cpu", or "cuda:0"
