"""Benchmarks that a policy is asked the questions of."""

from collections.abc import Mapping
from typing import Any

from tasks.benchmarks import ask_benchmarks
from tasks.checks import checked
from tasks.run import current_run
from wind.benchmarks import BenchmarksSpec
from wind.benchmarks.records import Benchmark
from wind.config.recipe import DistillConfig
from wind.store.handles import Dataset, Model


def ask(config: DistillConfig, policy: Model, benchmarks: Mapping[str, Benchmark]) -> Dataset:
    """Ask `policy` the questions of one benchmark or more.

    Each is computed by itself, so that another one in the recipe asks no question again.
    """

    def asked(name: str) -> Dataset:
        benchmark = benchmarks[name]
        inputs: dict[str, Any] = {"policy": policy, "name": name, "benchmark": benchmark}
        if benchmark.kind == "harness":  # whose answers are not sampled
            inputs |= {"sampling": None, "seed": None}
        return checked(ask_benchmarks(BenchmarksSpec.of(config, inputs)))

    first, *others = sorted(benchmarks)
    if not others:
        return asked(first)
    parts = {}
    for name in (first, *others):
        with current_run().beside(name):
            parts[name] = asked(name)
    return checked(ask_benchmarks(BenchmarksSpec(policy=policy, parts=parts)))
