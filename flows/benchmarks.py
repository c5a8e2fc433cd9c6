"""The benchmarks of a policy, of a run or of none."""

from collections.abc import Mapping
from typing import Any

from tasks.benchmarks import ask_benchmarks
from tasks.checks import checked
from tasks.run import current_run
from wind.benchmarks import BenchmarksSpec
from wind.benchmarks.records import Benchmark
from wind.config.recipe import DistillConfig
from wind.store.handles import Dataset, Model


def ask(
    config: DistillConfig, policy: Model, benchmarks: Mapping[str, Benchmark]
) -> dict[str, Dataset]:
    """Ask `policy` the questions of `benchmarks`.

    Returns the dataset by its name, or nothing where there are none. Each benchmark is computed by
    itself, so that another one in the recipe asks no question again.
    """

    def asked(name: str) -> Dataset:
        benchmark = benchmarks[name]
        inputs: dict[str, Any] = {"policy": policy, "name": name, "benchmark": benchmark}
        if benchmark.kind == "harness":  # whose answers are not sampled
            inputs |= {"sampling": None, "seed": None}
        return checked(ask_benchmarks(BenchmarksSpec.of(config, inputs)))

    if not benchmarks:
        return {}
    first, *others = sorted(benchmarks)
    if not others:
        return {"benchmarks": asked(first)}
    parts = {}
    for name in (first, *others):
        with current_run().beside(name):
            parts[name] = asked(name)
    return {"benchmarks": checked(ask_benchmarks(BenchmarksSpec(policy=policy, parts=parts)))}


def due(
    config: DistillConfig, iteration: int, benchmarks: Mapping[str, Benchmark]
) -> dict[str, Benchmark]:
    """Return those of `benchmarks` that are measured after `iteration`."""
    every = {name: section.every for name, section in config.evaluation.benchmarks.items()}
    is_last = iteration == config.iterations
    return {
        name: each for name, each in benchmarks.items() if is_last or not iteration % every[name]
    }
