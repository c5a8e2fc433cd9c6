"""The nouns of the stages, and the only lookup of their modules.

A dataset is named after the noun of the stage that computes it. Everything else that is known about
the stage is in its module, `wind.<noun>`. To add a stage, add its noun here.
"""

from importlib import import_module
from typing import Any, Final

# Stages of a run, in order.
STAGES: Final = (
    "prompts",
    "generations",
    "rewards",
    "win_rates",
    "selections",
    "logps",
    "training",
    "rollouts",
    "evaluation",
    "responses",
    "matches",
    "health",
    "benchmarks",
    "metrics",
    "alarms",
)
# Stages outside any run, computed from finished runs or from none.
STUDIES: Final = ("comparison", "bandit", "rates")


def record_of(noun: str) -> Any:
    """Import the module of the stage `noun` and return its `STAGE`.

    The store is a layer below the stages and may not import them, yet it needs the columns and keys
    that they declare. This is the only place where a module is imported by its noun.
    """
    return import_module(f"wind.{noun}").STAGE
