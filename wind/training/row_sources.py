"""Sources of training rows, behind one protocol."""

from pathlib import Path
from typing import Protocol

from wind.store.datasets import Store
from wind.training import FitSpec, TrainingSpec
from wind.training.batches import Integers, Plan, Rows, load_rows


class RowSource(Protocol):
    """The rows of every optimizer step, the same on all ranks.

    All methods are collective.
    """

    plan: Plan

    def step(self, step: int) -> tuple[Rows, Integers]:
        """Return the rows used in 0-based step `step`, and its groups."""
        ...

    def stepped(self) -> None:
        """React to changed weights; called after every optimizer step."""

    def save(self, folder: Path) -> list[Path]:
        """Save the state needed to resume in `folder`, a checkpoint's.

        Returns the files elsewhere that are needed too; those are written by the first rank.
        """
        ...

    def export(self) -> dict[str, list[float]]:
        """Write further model folders, beside the trained one, into the work folder.

        Returns their names with the log-probabilities of the probe.
        """
        ...


class StoredRows:
    """The rows of a spec's datasets, read once."""

    def __init__(self, spec: TrainingSpec, store: Store) -> None:
        self._rows = load_rows(spec, store)
        self.plan = plan_of(spec, self._rows.groups)

    def step(self, step: int) -> tuple[Rows, Integers]:
        """Return all rows, and the groups of the step."""
        return self._rows, self.plan.step_groups(step)

    def stepped(self) -> None:
        """Do nothing: the rows do not depend on the weights."""

    def save(self, folder: Path) -> list[Path]:
        """Save nothing: the rows are in the store."""
        return []

    def export(self) -> dict[str, list[float]]:
        """Write no further models."""
        return {}


def plan_of(spec: FitSpec, groups: int) -> Plan:
    """Return the plan of a training on `groups` prompts."""
    return Plan(training=spec.training, seed=spec.seed, iteration=spec.iteration, groups=groups)
