"""Rule rewards: a user's function `(prompts, responses, answers) -> rewards`.

It is called once per shard. `prompts` is what the user asked (the last user message, not the
rendered text), `responses` the sampled texts, `answers` the gold answers, None where there is none.
It returns one number per response or, if the config lists components, a mapping with `reward` and
exactly those columns; a list of such mappings or a data frame will do as well. It may be a
coroutine function.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from wind.code.functions import source_digest, sources
from wind.config.base import Function, Name
from wind.config.models import InferenceConfig
from wind.config.rewards import CorruptionConfig, RuleRewardConfig
from wind.errors import ConfigError, InputError
from wind.files import open_plain
from wind.fingerprints import stream_digest
from wind.rewards.functions import Floats, Responses, UserFunction, checked_numbers
from wind.rewards.kinds.base import Judge, RewardKind, scalar_judge
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.schemas import preferences_schema


class Rule(RewardKind):
    """A Python function, `module:function`, with the digest of its source."""

    kind: Literal["rule"] = "rule"
    function: Function
    components: tuple[Name, ...] = ()
    source_digest: str
    # sha256 of each source file that the digest covers, by module name
    sources: dict[str, str] = Field(default_factory=dict)
    # sha256 of each file that `reward.inputs` names
    inputs: tuple[str, ...] = ()
    corruption: CorruptionConfig | None = None

    @classmethod
    def resolve(cls, store: Store, config: RuleRewardConfig) -> Self:
        """Return the function with the digest of its source, without importing it."""
        _check_components(config.components)
        return cls(
            function=config.function,
            components=config.components,
            source_digest=source_digest("reward.function", config.function),
            sources=sources("reward.function", config.function),
            inputs=tuple(_input_digest(path) for path in config.inputs),
            corruption=config.corruption,
        )

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return a judge that calls the function, which sees `device` only."""
        return scalar_judge(RuleReward(self, device, function_seconds), self.corruption)

    def component_names(self) -> tuple[str, ...]:
        """Return `components`."""
        return self.components


class RuleReward:
    """A `RewardModel` that calls a Python function."""

    def __init__(self, rule: Rule, device: str, seconds: float | None) -> None:
        self._components = rule.components
        self._function = UserFunction(
            "reward.function", rule.function, rule.source_digest, seconds, device
        )

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return one finite number per row and column.

        Raises InputError for everything the function can do wrong.
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
                f"{self._function} returned no {', '.join(missing)}: "
                f"return a dict with {', '.join(declared)}, as configured"
            )
        if undeclared := [str(name) for name in returned if name not in declared]:
            raise InputError(
                f"{self._function} returned {', '.join(undeclared)} too: "
                "list it under reward.components, or drop it"
            )


def _check_components(components: tuple[str, ...]) -> None:
    taken = preferences_schema().names
    for name in components:
        if name in taken or components.count(name) > 1:
            raise ConfigError(
                f"reward.components lists {name} twice or beside the column of that name: "
                "choose another name"
            )


def _input_digest(path: str) -> str:
    try:
        with open_plain(Path(path).expanduser()) as file:
            return stream_digest(file)
    except OSError as error:
        raise ConfigError(
            f"reward.inputs names {path}, which cannot be read ({error.strerror}): correct the path"
        ) from error
