"""The metrics and costs of several runs in one table.

One row is one number of one iteration of one run: each of the run's metrics, and two counts since
its start. Work that two runs share through the cache is charged to both, as if each had run alone.
"""

from collections import defaultdict

import polars as pl
import pyarrow as pa
from pydantic import Field

from wind.records import Record
from wind.stages import Place, Progress, Shard, Spec, Stage, main
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset
from wind.store.schemas import KEYS, SCHEMAS

# cumulative counts, with the dataset whose rows are counted
COSTS = {"samples": "generations", "reward_calls": "rewards"}


class Iteration(Record):
    """One iteration of one run.

    Iteration 0 is the policy that the run starts from; it has spent nothing.
    """

    recipe: str
    setting: str
    seed: int
    iteration: int = Field(ge=0)
    metrics: Dataset
    # responses to the training prompts; on-policy, the rollouts are both datasets
    generations: Dataset | None = None
    rewards: Dataset | None = None

    def run(self) -> tuple[str, str, int]:
        """Return the recipe, setting and seed, which identify its run."""
        return self.recipe, self.setting, self.seed


class ComparisonSpec(Spec):
    """The iterations of all compared runs."""

    iterations: tuple[Iteration, ...] = Field(min_length=1)

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs, named by run, iteration and dataset."""
        named = (
            (f"{' '.join(filter(None, each.run()[:2]))} s{each.seed}@{each.iteration}", each)
            for each in self.iterations
        )
        return {
            f"{name}:{noun}": handle
            for name, each in named
            for noun in ("metrics", *COSTS.values())
            if (handle := getattr(each, noun)) is not None
        }


def _shards(spec: ComparisonSpec, store: Store) -> int:
    return 1


def _compute(
    spec: ComparisonSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    frames = []
    spent: defaultdict[tuple[str, str, int], dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(COSTS, 0)
    )
    for done, each in enumerate(
        sorted(spec.iterations, key=lambda each: (*each.run(), each.iteration)), 1
    ):
        counts = spent[each.run()]
        for metric, noun in COSTS.items():
            handle = getattr(each, noun)
            counts[metric] += _count(store, handle) if handle is not None else 0
        rows = [(metric, float(count), None, None, count) for metric, count in counts.items()]
        costs = pl.DataFrame(rows, schema=["metric", "value", "low", "high", "n"], orient="row")
        metrics = store.frame(each.metrics).drop("iteration")
        of_run = {
            "recipe": each.recipe,
            "setting": each.setting,
            "seed": each.seed,
            "iteration": each.iteration,
        }
        both = pl.concat([metrics, costs], how="vertical_relaxed")
        frames.append(
            both.select(*(pl.lit(value).alias(name) for name, value in of_run.items()), pl.all())
        )
        progress(done, len(spec.iterations))
    table: pa.Table = (
        pl.concat(frames).sort(KEYS["comparison"]).select(SCHEMAS["comparison"].names).to_arrow()
    )
    return Shard(table)


def _count(store: Store, handle: Dataset) -> int:
    """Count the rows of `handle`, or a pairwise model's comparisons.

    A pairwise model scores every ordered pair of different responses: each row has a list of
    preferences, one of them over itself.
    """
    if "preferences" not in store.open(handle).schema.names:
        return handle.rows
    return int(store.frame(handle, ["preferences"])["preferences"].list.len().sum()) - handle.rows


def _numbers(spec: ComparisonSpec, table: pa.Table) -> dict[str, float]:
    runs = {each.run() for each in spec.iterations}
    return {"runs": len(runs), "iterations": max(each.iteration for each in spec.iterations)}


STAGE = Stage(
    name="comparison", spec=ComparisonSpec, shards=_shards, compute=_compute, numbers=_numbers
)

if __name__ == "__main__":
    main("comparison")
