"""Paired: by how much one version's numbers differ from another's, on what both were asked.

Where two evaluations share prompts, a prompt that is hard for one policy is mostly hard for the
other, too. The difference of each prompt's two means, bootstrapped over prompts, has a shorter
interval than the two numbers side by side suggest, and it is the right one.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import polars as pl

from wind.metrics.values import distinct_n, distinct_responses, row_metrics
from wind.records import Record
from wind.statistics.bootstrap import estimate, generator_for
from wind.store.datasets import Store
from wind.store.versions import Version

RESAMPLES: Final = 2000
ASKED: Final = ("prompt_id", "value")


class PairedDifference(Record):
    """The difference of one metric between two versions, after minus before."""

    metric: str
    difference: float
    low: float | None  # 95% bootstrap interval over prompts; None for fewer than two
    high: float | None
    prompts: int  # that both versions were asked


class Moved(Record):
    """A prompt that both versions were asked, and each one's mean of some number on it."""

    prompt_id: str
    before: float
    after: float


def paired_differences(store: Store, before: Version, after: Version) -> list[PairedDifference]:
    """Return the differences of all metrics that both versions have by prompt."""
    ours, theirs = (dict(_by_prompt(store, version)) for version in (before, after))
    return [
        found
        for metric in ours
        if metric in theirs and (found := paired(metric, ours[metric], theirs[metric])) is not None
    ]


def paired(metric: str, before: pl.DataFrame, after: pl.DataFrame) -> PairedDifference | None:
    """Return the mean over shared prompts of the difference of each prompt's means.

    Both sides have the columns prompt_id and value. None if they share no prompt.
    """
    rows = joined(before, after)
    if rows.is_empty():
        return None
    differences = rows.select("prompt_id", value=pl.col("after") - pl.col("before"))
    # seeded by the name alone: the same two versions give the same interval
    value, low, high = estimate(differences, RESAMPLES, generator_for(0, 0, metric))
    return PairedDifference(
        metric=metric, difference=value, low=low, high=high, prompts=len(differences)
    )


def moved_most(
    store: Store, before: Version, after: Version, column: str, count: int
) -> list[Moved]:
    """Return the shared prompts on which the mean of `column` moved most, largest first.

    `column` is one of the evaluation's. Empty if a version has no evaluation.
    """
    sides = []
    for version in (before, after):
        handle = version.content.datasets.get("evaluation")
        if handle is None:
            return []
        rows = store.frame(handle, ["prompt_id", column])
        sides.append(rows.select("prompt_id", value=pl.col(column).cast(pl.Float64)).drop_nulls())
    rows = joined(*sides).with_columns(moved=(pl.col("after") - pl.col("before")).abs())
    most = rows.filter(pl.col("moved") > 0).sort(["moved", "prompt_id"], descending=[True, False])
    return [Moved.model_validate(row) for row in most.head(count).drop("moved").to_dicts()]


def joined(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return each shared prompt with its mean on both sides: prompt_id, before, after."""
    means = [
        side.group_by("prompt_id").agg(pl.col("value").mean().alias(name))
        for side, name in ((before, "before"), (after, "after"))
    ]
    return means[0].join(means[1], on="prompt_id", how="inner", validate="1:1").sort("prompt_id")


def _by_prompt(store: Store, version: Version) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each metric of a version that is a mean over rows, with the rows' values."""
    datasets = version.content.datasets
    if "evaluation" in datasets:
        yield from _filled(row_metrics(store.frame(datasets["evaluation"])))
    if "eval_generations" in datasets:
        columns = ["prompt_id", "sample_index", "response"]
        responses = store.frame(datasets["eval_generations"], columns)
        yield from _filled({f"distinct_{n}": distinct_n(responses, n) for n in (1, 2, 3)})
        yield "distinct_responses", distinct_responses(responses)
    if "matches" in datasets:
        columns = ["judge", "opponent", "prompt_id", "win_rate", "tie_share"]
        rows = store.frame(datasets["matches"], columns)
        for (judge, opponent), part in rows.group_by(["judge", "opponent"], maintain_order=True):
            for family in ("win_rate", "tie_share"):
                values = part.select("prompt_id", value=pl.col(family)).drop_nulls()
                yield f"{family}.{judge}.{opponent}", values
    if "benchmarks" in datasets:
        rows = store.frame(datasets["benchmarks"], ["benchmark", "item", "metric", "value"])
        for (benchmark, metric), part in rows.group_by(
            ["benchmark", "metric"], maintain_order=True
        ):
            values = part.select(prompt_id=pl.col("item").cast(pl.String), value=pl.col("value"))
            yield f"benchmark.{benchmark}.{metric}", values.drop_nulls()


def _filled(values: Mapping[str, pl.DataFrame]) -> Iterator[tuple[str, pl.DataFrame]]:
    return ((name, frame.select(ASKED)) for name, frame in values.items() if len(frame))
