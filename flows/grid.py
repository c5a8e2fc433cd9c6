"""The grid of a study: recipes to compare under several settings."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wind.config.base import flattened
from wind.config.loading import alternatives, load_config
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError
from wind.fingerprints import digest

# What defines an algorithm, and the names of runs. Compared recipes agree on everything else.
FREE = ("run", "seed", "objective", "reference", "training", "win_rate", "selection")
# compared as the total that an iteration draws: on-policy training draws more than N per epoch
BUDGET = "sampling.samples_per_prompt"
# characters of a setting that fit into a run's name
SLUG = 28


@dataclass(frozen=True)
class Cell:
    """A recipe under one setting; each seed makes it a run."""

    recipe: str
    # its name in tables; empty for the recipe as it is
    setting: str
    # of the settings that were tried, by dotted name
    values: Mapping[str, Any]
    config: DistillConfig

    def seeded(self, seed: int) -> DistillConfig:
        """Return the config of the run with `seed`, under its own name."""
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.setting)
        slug = slug if len(slug) <= SLUG else digest(self.setting)[:12]
        name = "-".join(filter(None, [self.recipe[: SLUG - 1], slug, f"s{seed}"]))
        return self.config.model_copy(update={"run": name, "seed": seed})


def read_recipes(
    paths: Sequence[Path], overrides: Sequence[str], tried: Sequence[str]
) -> list[list[Cell]]:
    """Return each recipe's cells: one per combination of the values `tried`.

    Without such values the only cell is the recipe as it is. Raises ConfigError if two recipes have
    the same name, or disagree on something that is not part of an algorithm.
    """
    trials = [grid(path, overrides, tried) for path in paths]
    first = trials[0][0].config
    names: dict[str, Path] = {}
    for path, cells in zip(paths, trials, strict=True):
        if cells[0].recipe in names:
            raise ConfigError(
                f"{names[cells[0].recipe]} and {path} are both called {cells[0].recipe}: "
                "give each its own `run`"
            )
        names[cells[0].recipe] = path
        for cell in cells:
            _refuse_other_conditions(str(paths[0]), first, str(path), cell.config)
    return trials


def grid(path: Path, overrides: Sequence[str], options: Sequence[str]) -> list[Cell]:
    """Return one cell per combination of the values that `options` list.

    An option is `section.key=V1,V2`; the last varies fastest. Raises ConfigError as `load_config`
    does, and if win rates would not be against the same policy.
    """
    axes = dict(alternatives(option) for option in options)
    if len(axes) < len(options):
        raise ConfigError(
            "a setting is listed twice: give all of its values at once, section.key=V1,V2"
        )
    if fixed := {"root", "run", "seed"} & set(axes):
        raise ConfigError(
            f"{fixed.pop()} is not a setting to choose between: --seeds gives the seeds, "
            "and the others are the same for all"
        )
    leaves = [name.rpartition(".")[2] for name in axes]
    shown = dict(zip(axes, leaves if len(set(leaves)) == len(leaves) else axes, strict=True))
    cells = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        config = load_config(
            path, [*overrides, *(f"{name}={json.dumps(value)}" for name, value in values.items())]
        )
        if config.evaluation.against != "initial":
            raise ConfigError(
                f"{path}: evaluation.against is {config.evaluation.against!r}; runs are compared "
                "by their win rates against one policy, the initial one: set it to 'initial'"
            )
        setting = " ".join(f"{shown[name]}={value}" for name, value in values.items())
        cells.append(Cell(config.run, setting, values, config))
    return cells


def _refuse_other_conditions(
    first_path: str, first: DistillConfig, path: str, config: DistillConfig
) -> None:
    ours, theirs = (
        dict(flattened(each.model_dump(mode="json", exclude=set(FREE))))
        | {BUDGET: each.responses_per_prompt()}
        for each in (first, config)
    )
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{path} has {name} {theirs.get(name)!r} and {first_path} has "
                f"{ours.get(name)!r}: compared recipes may differ only in {', '.join(FREE)}; "
                f"make them agree, or give --set {name}=..."
            )
