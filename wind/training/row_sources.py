"""Where the rows of a training come from: the stored rows of an iteration, or another source behind
the same protocol.
"""

from pathlib import Path
from typing import Protocol

from wind.store.datasets import Store
from wind.training import FitSpec, TrainingSpec
from wind.training.batches import Integers, Plan, Rows, load_rows


class RowSource(Protocol):
    """The rows of every optimiser step, the same on all ranks; its methods are collective."""

    plan: Plan

    def step(self, step: int) -> tuple[Rows, Integers]:
        """The rows that optimiser step `step`, counted from 0, draws on, and its groups among them."""
        ...

    def stepped(self) -> None:
        """The weights have changed: called after every optimiser step."""

    def save(self, folder: Path) -> list[Path]:
        """Save what a resumed training needs in `folder`, a checkpoint's; returns the files
        elsewhere that it needs too.

        Those elsewhere are written by the first rank.
        """
        ...

    def export(self) -> dict[str, list[float]]:
        """Write the model folders there are beside the trained one into the work folder: their
        names, and logps of the probe.
        """
        ...


class StoredRows:
    """The rows of a spec's datasets, read once."""

    def __init__(self, spec: TrainingSpec, store: Store) -> None:
        self._rows = load_rows(spec, store)
        self.plan = plan_of(spec, self._rows.groups)

    def step(self, step: int) -> tuple[Rows, Integers]:
        """All rows, and the groups of the step."""
        return self._rows, self.plan.step_groups(step)

    def stepped(self) -> None:
        """Nothing depends on the weights."""

    def save(self, folder: Path) -> list[Path]:
        """Nothing: the rows are in the store."""
        return []

    def export(self) -> dict[str, list[float]]:
        """No further models."""
        return {}


def plan_of(spec: FitSpec, groups: int) -> Plan:
    """The plan of a training on `groups` prompts."""
    return Plan(training=spec.training, seed=spec.seed, iteration=spec.iteration, groups=groups)
