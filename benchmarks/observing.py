"""Benchmark the observation of a user's function.

Usage: python benchmarks/observing.py [--calls N] [--rounds N]

The same rule, which imports NumPy and reads a file, is called in a host that observes and in one
that does not, in turns. Prints the medians of a start, of a call on 64 responses, and their ratios;
then the time to compare a record with the files.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wind.code.observed import Observed
from wind.rewards import hosts
from wind.rewards.hosts import Host

RULE = """
import json, numpy


def score(prompts, responses, answers):
    weight = json.load(open("weights.json"))["w"]
    means = [numpy.mean([ord(letter) for letter in response]) for response in responses]
    return [weight * float(mean) for mean in means]
"""
UNOBSERVED = """
import runpy, sys
import wind.code.observing


class Nothing:
    def begin(self, own): pass
    def report(self): return {"files": {}, "variables": {}, "packages": {}, "unobserved": []}


wind.code.observing.Observer = Nothing
runpy.run_path(%r, run_name="__main__")
"""
BATCH = {
    "prompts": ["what?"] * 64,
    "responses": ["a response of some words " * 8] * 64,
    "answers": [None] * 64,
}


def main() -> None:
    """Measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("rule.py").write_text(RULE)
        Path("weights.json").write_text('{"w": 1.5}')
        Path("unobserved.py").write_text(UNOBSERVED % str(hosts.SCRIPT))
        scripts = {"observed": hosts.SCRIPT, "not observed": Path("unobserved.py").absolute()}
        starts: dict[str, list[float]] = {name: [] for name in scripts}
        calls: dict[str, list[float]] = {name: [] for name in scripts}
        seen = Observed()
        for _ in range(arguments.rounds):
            for name, script in scripts.items():
                hosts.SCRIPT = script  # type: ignore[misc]
                began = time.perf_counter()
                host = Host("cpu")
                host.ask({"load": "rule:score"}, None)
                starts[name].append(time.perf_counter() - began)
                calls[name] += [
                    seconds(functools.partial(host.ask, BATCH, None))
                    for _ in range(arguments.calls)
                ]
                seen = host.observed if name == "observed" else seen
                host.end()
        compared = [seconds(seen.changed) for _ in range(arguments.calls)]
    for what, found in (("start", starts), ("call", calls)):
        ours, plain = (statistics.median(found[name]) for name in scripts)
        print(
            f"{what:<6} observed {1e3 * ours:8.2f} ms   not observed {1e3 * plain:8.2f} ms   "
            f"ratio {ours / plain:5.2f}"
        )
    used = f"{len(seen.files)} files and {len(seen.packages)} packages"
    print(f"compare a record of {used} {1e3 * statistics.median(compared):8.2f} ms")


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
