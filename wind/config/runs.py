"""Where a run computes, what it checks, and what it keeps.

Nothing here determines content.
"""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from wind.config.base import Name, Section
from wind.config.checks import ChecksConfig
from wind.config.sampling import Backend
from wind.config.trackers import TrackersConfig
from wind.errors import shown
from wind.redaction import redacted


class WorkersConfig(Section):
    """Where stages run."""

    # has no other value; stays because a run keeps its config, and release 0.1 wrote this setting
    executor: Literal["local"] = "local"
    processes: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # auto: keep workers warm on a CPU; on a GPU, end them to free its memory for the next stage
    keep_warm: Literal["auto", "always", "never"] = "auto"
    # the Python interpreter of each kind of worker
    python: dict[Literal[Backend, "training", "benchmarks"], str] = Field(default_factory=dict)


class RetentionConfig(Section):
    """What `wind gc` keeps of a run's versions besides their datasets.

    Nothing else ever deletes data.
    """

    # of which versions; a number: of that many last versions and of tagged ones
    weights: Literal["all", "tagged"] | int = "all"
    # for how many of the last versions the final checkpoint of a finished training is kept
    optimizer_states: int = Field(0, ge=0)

    @field_validator("weights", mode="plain")
    @classmethod
    def _is_all_tagged_or_a_count(cls, value: object) -> object:
        if value in ("all", "tagged") or (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1
        ):
            return value
        raise ValueError(
            "it must be 'all', 'tagged', or how many of the last versions, such as 2; "
            f"it is {shown(value)}"
        )


class CacheConfig(Section):
    """What a cached dataset must match besides its inputs and code."""

    # computed with other package versions: use it and warn once, recompute it, or use it silently
    packages: Literal["warn", "key", "ignore"] = "warn"


class RunConfig(Section):
    """The settings that every flow has besides its own sections.

    None of them determines content.
    """

    run: Name
    root: str = "./store"
    checks: ChecksConfig = ChecksConfig()
    workers: WorkersConfig = WorkersConfig()
    cache: CacheConfig = CacheConfig()
    retention: RetentionConfig = RetentionConfig()
    trackers: TrackersConfig = TrackersConfig()

    @model_validator(mode="after")
    def _holds_no_credentials(self) -> Self:
        # A config is kept beside its run, and by Prefect in every flow run's parameters.
        for name, text in _texts(self.model_dump(mode="json")):
            if redacted(text) != text:
                raise ValueError(
                    f"{name} holds a credential: leave it out, and set it in the environment, "
                    "such as HF_TOKEN"
                )
        return self


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a dumped config with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict | list):
        for key, content in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(content, f"{name}.{key}" if name else str(key))
