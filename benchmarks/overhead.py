"""Benchmark the overhead of a run beyond its stages' own compute.

Usage: python benchmarks/overhead.py [CONFIG] [--set K=V ...]

Runs a recipe in an empty store, then again with nothing changed, and prints: wall time, the sum of
the stages' compute, the share of overhead (start-up, checks, Prefect, publishing), the time of the
identical rerun, and each stage's peak memory.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from wind.stages import STAGES
from wind.store.datasets import Store
from wind.store.handles import Manifest


def main() -> None:
    """Run twice, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        settings = [*arguments.overrides, f"root={root}"]
        first = timed(arguments.config, settings)
        again = timed(arguments.config, settings)
        store = Store(root)
        manifests = {
            name: [store.manifest(handle) for handle in store.handles(name)] for name in STAGES
        }
    print_table(manifests, first, again)


def timed(config: str, settings: Sequence[str]) -> float:
    """Return the seconds that `wind run` takes as a separate process."""
    command = [sys.executable, "-m", "flows.cli", "run", config]
    began = time.monotonic()
    subprocess.run(
        [*command, *(word for setting in settings for word in ("--set", setting))],
        check=True,
        capture_output=True,
    )
    return time.monotonic() - began


def print_table(manifests: dict[str, list[Manifest]], first: float, again: float) -> None:
    """Print one line per stage, then the shares."""
    total = 0.0
    print(f"{'stage':<14}{'datasets':>9}{'seconds':>10}{'peak MB':>10}")
    for name, entries in manifests.items():
        seconds = sum(entry.provenance["seconds"] for entry in entries)
        peak = max((entry.provenance["peak_memory_bytes"] for entry in entries), default=0)
        total += seconds
        print(f"{name:<14}{len(entries):>9}{seconds:>10.1f}{peak / 1e6:>10.0f}")
    print(f"\nwhole run        {first:7.1f} s")
    print(f"stages' compute  {total:7.1f} s")
    print(
        f"overhead         {first - total:7.1f} s, {100 * (first - total) / first:.0f}% of the run"
    )
    print(f"identical rerun  {again:7.1f} s")


if __name__ == "__main__":
    main()
