"""Records exchanged between a training and its ranks."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import SerializeAsAny

from wind.config.endpoints import Connection
from wind.records import Record
from wind.training import FitSpec

S = TypeVar("S", bound=FitSpec)
# suffix of files in a work folder that record what some of its rows were made with
OBSERVED = ".observed.json"
Row = tuple[int, str, float]  # step, metric, value: as in the dataset


class Checkpoint(Record):
    """A usable checkpoint.

    It holds the number of finished optimizer steps, the rows of those steps, and the folder of the
    engine's state.
    """

    steps: int
    rows: list[Row]
    folder: str


class Assignment(Record, Generic[S]):
    """One training as it is handed to its ranks."""

    spec: SerializeAsAny[S]
    root: str
    work: str  # folder for checkpoints and the export
    device: str  # cpu | cuda
    # where to resume
    checkpoint: Checkpoint | None
    # whether to leave a checkpoint after the last step too
    keep_state: bool = False
    # time limit of a user's function, as in `Place`
    function_seconds: float | None = None
    # how to reach what rewards by HTTP, as in `Place`
    connections: dict[str, Connection] = {}


class Trained(Record):
    """The result of a training: its dataset rows and probe log-probabilities.

    `probe_logps` maps each export folder to the log-probabilities of the probe under the weights in
    that folder.
    """

    rows: list[Row]
    probe_logps: dict[str, list[float]]


@dataclass(frozen=True)
class World:
    """This process's position among the ranks."""

    rank: int
    ranks: int
    device: str  # "cpu", or "cuda:0"
