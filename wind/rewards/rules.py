"""Rule rewards: a user's function `(prompts, responses, answers) -> rewards`, called once for each
shard.

`prompts` is what the user asked (the last user message, not the rendered text), `responses` the
sampled texts, `answers` the gold answers, None where there is none. It returns one number per
response, or, where the config lists components, a mapping with `reward` and exactly those columns;
or a list of such mappings, or a data frame. It may be a coroutine function.
"""

from wind.errors import InputError
from wind.rewards import Rule
from wind.rewards.functions import Floats, Responses, UserFunction, checked_numbers
from wind.stages import Progress


class RuleReward:
    """A `RewardModel` that asks a Python function."""

    def __init__(self, rule: Rule, device: str, seconds: float | None) -> None:
        self._components = rule.components
        self._function = UserFunction(
            "reward.function", rule.function, rule.source_digest, seconds, device
        )

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """One finite number per row and column. Raises InputError for everything the function can
        do wrong.
        """
        columns = {name or "reward": column for name, column in self._function(rows).items()}
        self._check(list(columns))
        checked = {
            name: checked_numbers(f"{self._function}, column {name},", column, rows)
            for name, column in columns.items()
        }
        progress(len(rows), len(rows))
        return checked

    def _check(self, returned: list[str]) -> None:
        declared = ["reward", *self._components]
        if missing := [name for name in declared if name not in returned]:
            raise InputError(
                f"{self._function} returned no {', '.join(missing)}: return a dict with {', '.join(declared)}, as configured"
            )
        if undeclared := [str(name) for name in returned if name not in declared]:
            raise InputError(
                f"{self._function} returned {', '.join(undeclared)} too: list it under reward.components, or drop it"
            )
