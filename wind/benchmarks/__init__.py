"""Benchmarks: questions with known answers, as published evaluations ask them.

One row is one question of one benchmark under one of its metrics. A metric of a benchmark is the
mean of its rows; `wind.metrics` adds the interval. Each benchmark is computed by itself: those of lm-evaluation-harness
in a worker of its own kind, MT-Bench and AlpacaEval where transformers samples. Where an iteration has several, its dataset holds
their rows one after the other. So another benchmark in a recipe asks no question again.
"""

from typing import Any, Final, Self

import pyarrow as pa
from pydantic import model_validator

from wind.benchmarks.records import Benchmark, ChatBenchmark
from wind.benchmarks.records import resolve_benchmarks as resolve_benchmarks
from wind.config.base import Label
from wind.config.models import InferenceConfig
from wind.config.sampling import SamplingConfig
from wind.stages import (
    Place,
    Progress,
    Role,
    Shard,
    Spec,
    Stage,
    WorkerKind,
    no_function,
    one_side,
    unforeseen,
)
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.schemas import Column, Declaration

# number of a benchmark's questions whose prompt was longer than the policy's context
CUT: Final = ".cut_prompts"

DATASET = Declaration(
    row="one question of one benchmark under one of its metrics",
    columns=(
        Column("benchmark", pa.string(), "its name in the recipe"),
        Column(
            "item",
            pa.string(),
            "the question's place in the benchmark's data, from 00000; in MT-Bench its id",
        ),
        Column("metric", pa.string(), "and after a dot the filter of the answer, if there is one"),
        Column(
            "value",
            pa.float64(),
            "of the metric for this question, null if nobody judged the answer",
            is_nullable=True,
        ),
        Column("question", pa.string(), "its text, without shots and chat template"),
        Column("response", pa.string(), "what was generated, or the choice of highest likelihood"),
        Column("target", pa.string(), "the right answer, or the reference's; empty if none"),
    ),
    key=("benchmark", "item", "metric"),
    foreign_keys=(),
)


class BenchmarksSpec(Spec):
    """One benchmark to ask a policy, or the finished `parts` to put together."""

    policy: Model
    name: Label | None = None
    benchmark: Benchmark | None = None
    inference: InferenceConfig | None = None
    # of answers in chat
    sampling: SamplingConfig | None = None
    seed: int | None = None
    parts: dict[Label, Dataset] = {}

    @model_validator(mode="after")
    def _asks_or_puts_together(self) -> Self:
        asks: list[Any] = [self.name, self.benchmark, self.inference]
        if isinstance(self.benchmark, ChatBenchmark):
            asks += [self.sampling, self.seed]
        if None in asks if not self.parts else asks != [None, None, None]:
            raise ValueError("name one benchmark and how the policy runs, or parts alone")
        return self

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs: the policy, and a benchmark's files or the parts."""
        files = {} if self.benchmark is None else self.benchmark.parents()
        return super().parents() | files | self.parts


def _shards(spec: BenchmarksSpec, store: Store) -> int:
    return 1


def _compute(
    spec: BenchmarksSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    if spec.parts:
        tables = [store.read(part) for part in spec.parts.values()]
        told = [store.manifest(part).numbers for part in spec.parts.values()]
        cut = {name: n for numbers in told for name, n in numbers.items() if name.endswith(CUT)}
        return Shard(_sorted(pa.concat_tables(tables)), numbers=cut)
    assert spec.name is not None
    assert spec.benchmark is not None
    assert spec.inference is not None
    if isinstance(spec.benchmark, ChatBenchmark):
        from wind.benchmarks import chat  # imports torch

        assert spec.sampling is not None
        assert spec.seed is not None
        answering = chat.Answering(
            store, spec.policy, spec.inference, spec.sampling, spec.seed, place.device
        )
        rows = answering.rows(spec.name, spec.benchmark, progress)
        return Shard(_sorted(pa.Table.from_pylist(rows, schema=DATASET.schema)))
    from wind.benchmarks.harness import answers

    said = answers(spec.name, spec.benchmark, store, spec.policy, spec.inference, place.device)
    progress(len(said.rows), len(said.rows))
    table = pa.Table.from_pylist(said.rows, schema=DATASET.schema)
    return Shard(_sorted(table), numbers={f"{spec.name}{CUT}": said.cut})


def _sorted(rows: pa.Table) -> pa.Table:
    return rows.sort_by([(name, "ascending") for name in DATASET.key])


def _numbers(spec: BenchmarksSpec, table: pa.Table) -> dict[str, float]:
    """Return the mean of every metric of every benchmark."""
    means = table.group_by(["benchmark", "metric"]).aggregate([("value", "mean")])
    return {
        f"{row['benchmark']}.{row['metric']}": row["value_mean"]
        for row in means.to_pylist()
        if row["value_mean"] is not None
    }


def _worker(spec: BenchmarksSpec) -> WorkerKind | None:
    if spec.parts:
        return None
    return "transformers" if isinstance(spec.benchmark, ChatBenchmark) else "benchmarks"


STAGE: Final[Stage[BenchmarksSpec]] = Stage(
    name="benchmarks",
    spec=BenchmarksSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=_worker,
    role=Role(
        # beside the cost of learning and of its evaluation, which comparisons of recipes count
        phase=None,
        sides=("",),
        side=one_side,
        history=(),
        is_timed=True,
        has_drift=False,
        expected=unforeseen,
        related_parents={},
        function_seconds=no_function,
    ),
)
