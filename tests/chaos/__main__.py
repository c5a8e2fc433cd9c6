"""Inject faults into a small real run, and see that each is survived: `python -m tests.chaos
--faults 100 --seed 0`.

Prints a line for each fault, and last of all how many were injected and survived. Ends with 1
unless all were.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.site import NotSurvivedError, cold_ids, site
from tests.chaos.trials import KINDS, Trial, drawn

MEMORY = Path("/dev/shm")  # where to sync a file takes no time


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many (default: 100)")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides their order and their places (default: 0)"
    )
    parser.add_argument(
        "--kinds",
        default="",
        help=f"only kinds whose name contains this; there are {', '.join(KINDS)}",
    )
    parser.add_argument("--iterations", type=int, default=2, help="of the run (default: 2)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no further trial after so long"
    )
    parser.add_argument(
        "--folder", type=Path, help="to work in, and to leave as it is; by default a temporary one"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends what was started, too
    folder = arguments.folder or Path(
        tempfile.mkdtemp(prefix="chaos-", dir=MEMORY if MEMORY.is_dir() else None)
    )
    folder.mkdir(exist_ok=True)
    try:
        is_survived = _inject(
            folder,
            drawn(arguments.faults, arguments.seed, arguments.kinds),
            arguments.seed,
            arguments.iterations,
            arguments.minutes,
        )
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    sys.exit(0 if is_survived else 1)


def _inject(
    folder: Path,
    trials: Sequence[tuple[str, random.Random]],
    seed: int,
    iterations: int,
    minutes: float,
) -> bool:
    """Whether every fault was survived."""
    begun = time.monotonic()
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    answered = 0
    with site(
        folder, iterations=iterations, with_s3=any("S3" in kind for kind, _ in trials)
    ) as here:
        if cold_ids(here.place(), here.server) != here.baseline().ids:
            raise NotSurvivedError("warm processes make other versions than cold ones")
        counts = here.baseline().counts
        here.prepare()
        print(
            f"the uninterrupted run: {sum(sum(each.values()) for each in counts.values())} "
            "operations on files below the root"
        )
        for number, (kind, draw) in enumerate(trials, 1):
            if time.monotonic() - begun > 60 * minutes:
                break
            trial, started = Trial(here, kind, draw), time.monotonic()
            try:
                trial.run()
                verdict = "survived"
                survived[kind] += 1
            except NotSurvivedError as failure:
                verdict = f"NOT SURVIVED: {failure}"
            except Exception as error:
                # of the harness itself: it counts as a fault that was not survived, and the others
                # go on
                verdict = f"NOT JUDGED: {type(error).__name__}: {error}"
            injected[kind] += 1
            answered += trial.is_answered
            seconds = time.monotonic() - started
            print(f"{number:>4} {seconds:5.1f} s  {kind}: {trial.what}: {verdict}", flush=True)
    print(f"\n{'injected':>8} {'survived':>8}  kind")
    for kind in sorted(injected, key=list(KINDS).index):
        print(f"{injected[kind]:>8} {survived[kind]:>8}  {kind}")
    lost = injected.total() - survived.total()
    took = round(time.monotonic() - begun)
    print(
        f"{answered} of them, damage to what only a user can restore, answered by a line that "
        "names the file, then restored\n"
        f"{injected.total()} faults injected, {survived.total()} survived, {lost} not; seed "
        f"{seed}, "
        f"{took // 60} min {took % 60} s on {os.cpu_count()} cores"
    )
    return lost == 0


if __name__ == "__main__":
    main()
