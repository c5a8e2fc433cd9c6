"""The nouns of the stages, and the one lookup of a stage's module by its noun.

A dataset is called by the noun of the stage that computes it, and everything else that is known of
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
    "metrics",
)
# Stages outside any run: computed from finished runs, or from none.
STUDIES: Final = ("comparison", "bandit", "rates")


def record_of(noun: str) -> Any:
    """Import the module of the stage `noun` and return its `STAGE`.

    The store stands below the stages and may not import them, yet needs the columns and keys that
    they declare. This is the only place where a module is imported by a noun.
    """
    return import_module(f"wind.{noun}").STAGE
