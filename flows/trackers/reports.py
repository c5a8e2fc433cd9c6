"""What a tracker is told of a version.

All of it is plain JSON without secrets: numbers, settings, and a few responses whose text is
shortened and shows what a browser or terminal would obey.
"""

from typing import Any, Self

import polars as pl

from wind.config.base import flattened
from wind.config.recipe import DistillConfig
from wind.machine.terminal import harmless
from wind.records import Record
from wind.redaction import redacted
from wind.store.datasets import Store
from wind.store.versions import Version

# of a prompt or response
MOST_CHARACTERS = 4000


class Sample(Record):
    """One held-out response of the policy."""

    prompt_id: str
    sample_index: int
    prompt: str
    response: str
    reward: float
    win_rate: float


class Report(Record):
    """One version of a run."""

    run: str
    key: str  # of the tracker's run, the same for all versions of ours
    number: int
    iteration: int
    id: str
    path: str  # of its record in the store
    published: float  # Unix time
    config: dict[str, Any]  # settings by dotted name
    numbers: dict[str, float]
    samples: tuple[Sample, ...] = ()

    @classmethod
    def of(
        cls, version: Version, config: DistillConfig, store: Store, *, key: str, prompts: int
    ) -> Self:
        """Report `version`, with the responses to its first `prompts` held-out prompts."""
        return cls(
            run=version.run,
            key=key,
            number=version.number,
            iteration=version.content.iteration,
            id=version.id,
            path=redacted(f"{store.url}/{version.file()}"),
            published=version.published,
            config=redacted(dict(flattened(config.model_dump(mode="json")))),
            numbers=_numbers(version),
            samples=_samples(version, store, prompts) if prompts else (),
        )

    def links(self) -> dict[str, str]:
        """Return what leads back from a tracker to the version."""
        return {
            "wind.version": f"{self.run}@{self.number}",
            "wind.id": self.id,
            "wind.path": self.path,
        }


def _numbers(version: Version) -> dict[str, float]:
    """Return metrics, the ends of their intervals, and seconds, by group and name."""
    numbers = {
        f"{group}/{name}": entry[end]
        for name, entry in version.metrics.items()
        for group, end in (("metrics", "value"), ("low", "low"), ("high", "high"))
        if entry[end] is not None
    }
    return numbers | {f"seconds/{name}": value for name, value in version.seconds.items()}


def _samples(version: Version, store: Store, prompts: int) -> tuple[Sample, ...]:
    datasets, key = version.content.datasets, ["prompt_id", "sample_index"]
    asked = store.frame(datasets["prompts"], ["prompt_id", "prompt", "split"])
    first = asked.filter(pl.col("split") == "eval").sort("prompt_id").head(prompts)
    rows = (
        store.frame(datasets["evaluation"], [*key, "reward_policy", "win_rate"])
        .join(first.drop("split"), on="prompt_id")
        .join(store.frame(datasets["eval_generations"], [*key, "response"]), on=key)
        .sort(key)
    )
    return tuple(
        Sample(
            prompt_id=row["prompt_id"],
            sample_index=row["sample_index"],
            prompt=_shown(row["prompt"]),
            response=_shown(row["response"]),
            reward=row["reward_policy"],
            win_rate=row["win_rate"],
        )
        for row in rows.to_dicts()
    )


def _shown(text: str) -> str:
    """Return `text` without secrets, shortened, in lines of visible characters."""
    kept = redacted(text)
    more = len(kept) - MOST_CHARACTERS
    lines = kept[:MOST_CHARACTERS].split("\n")
    shown = "\n".join(harmless(line) for line in lines)
    return shown if more <= 0 else f"{shown} ... {more} more characters"
