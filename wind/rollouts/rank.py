"""One rank of an on-policy training, which draws on fresh rows."""

from typing import TYPE_CHECKING, Any

from wind.rollouts import RolloutsSpec
from wind.training.assignments import Assignment, World

if TYPE_CHECKING:
    from wind.training.row_sources import RowSource

SPEC = RolloutsSpec


def open_source(assignment: Assignment[RolloutsSpec], engine: Any, world: World) -> "RowSource":
    """Return the source that samples from the engine's weights."""
    from wind.rollouts.fresh import FreshRows

    return FreshRows(assignment, engine, world)
