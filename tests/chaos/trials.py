"""Trials: one fault each, then one plain rerun, a collection, and a look at everything that is
left.
"""

import errno
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.processes import Ended
from tests.chaos.proxy import When
from tests.chaos.shim import Action, Lasts, Operation, Role
from tests.chaos.site import RUN, Left, NotSurvivedError, Place, Site, ids_of, refuse_traceback

ATTEMPTS = 6  # to hit a run that has less to do than the one the shot was aimed by
CHANCE_OF_LEFT = 0.8  # that a trial begins in what another fault left half done
MOST_DONE = 0.9
MOST_LINES = 100  # of a run that says what it does, and nothing else
DISK = frozenset({Operation.WRITE, Operation.MAKE, Operation.SYNC})
EVERYTHING = frozenset(Operation)
EVERYBODY = frozenset(Role)
HOUR = 3600
CUTS: tuple[When, ...] = ("before", "half", "after")

# every kind of file below the root, by its name; those of unfinished work come from interrupted
# runs
FILES = {
    "a shard": r"datasets/[a-z_.]+/[0-9a-f]{64}/part-\d+\.arrow",
    "a manifest": r"(datasets/[a-z_.]+|models|sources)/[0-9a-f]{64}/manifest\.json",
    "weights": r"models/[0-9a-f]{64}/.*\.safetensors",
    "another file of a model": r"models/[0-9a-f]{64}/(?!manifest).*\.(json|jinja|txt)",
    "a source": r"sources/[0-9a-f]{64}/(?!manifest).*",
    "a result": r"results/.*",
    "a computation": r"computations/.*",
    "a check": r"checks/.*\.json",
    "the page of a check": r"checks/.*\.html",
    "which check is the last": r"checks/.*/latest",
    "the config of the run": rf"runs/{RUN}/config\.json",
    "the tag latest": rf"runs/{RUN}/tags/latest",
    "a partial shard": r"partial/[a-z_.]+/[0-9a-f]{64}/part-\d+\.arrow",
    "what is beside a partial shard": r"partial/[a-z_.]+/[0-9a-f]{64}/outputs-\d+\.json",
    "a checkpoint": r"partial/training-checkpoints/.*/engine/.*",
    "the marker of a checkpoint": r"partial/training-checkpoints/.*/complete\.json",
}
INTERRUPTED = {  # where to kill a run so that it leaves such files
    "a partial shard": "/part-00001.arrow",
    "what is beside a partial shard": "/part-00001.arrow",
    "a checkpoint": "/step-00000002",
    "the marker of a checkpoint": "/step-00000002",
}
EDITED = {  # what no stage makes again: damage is told, and only the user can undo it
    "a version": rf"runs/{RUN}/versions/\d+\.json",
    "a tag": rf"runs/{RUN}/tags/(?!latest).*",
    "an environment": r"environments/.*",
}


@dataclass
class Trial:
    """One fault of `kind` at a place that `draw` decides."""

    site: Site
    kind: str
    draw: random.Random
    what: str = ""  # happened, in words
    is_answered: bool = False  # by a line that names the file, which was then restored

    def run(self) -> None:
        """Raise NotSurvivedError unless the fault is survived."""
        KINDS[self.kind](self)


def assert_survived(
    trial: Trial, place: Place, *, ranks: int = 1, is_remote: bool = False, others: str = ""
) -> None:
    """One plain rerun ends with the versions of the uninterrupted run, and a collection leaves what
    that left.

    `others` is a pattern of names that may be left too.
    """
    site, baseline = trial.site, trial.site.baseline(ranks, is_remote=is_remote)
    site.shim.disarm()
    ended = site.wind(place, "run", "tiny.yaml", "--json")
    if ended.code:
        raise NotSurvivedError(f"the rerun ended with {ended.code}: {ended.error}")
    if ids_of(ended) != baseline.ids:
        raise NotSurvivedError(f"the rerun made the versions {ids_of(ended)}, not {baseline.ids}")
    collected = site.wind(place, "gc", "--root", place.root)
    if collected.code:
        raise NotSurvivedError(f"gc ended with {collected.code}: {collected.error}")
    assert_verified(trial, place)
    if orphans := site.nursery.orphans():
        raise NotSurvivedError(f"still alive: {orphans}")
    names = {name for name in place.names() if not (others and re.match(others, name))}
    if names != baseline.names:
        raise NotSurvivedError(
            f"left too much: {sorted(names - baseline.names)}; lost: "
            f"{sorted(baseline.names - names)}"
        )
    if left := place.temporary():
        raise NotSurvivedError(f"left on this machine: {left}")


def assert_verified(trial: Trial, place: Place) -> None:
    verified = trial.site.wind(place, "verify", "--root", place.root, "--json")
    if verified.code or json.loads(verified.out)["findings"]:
        raise NotSurvivedError(
            f"verify ended with {verified.code}: {verified.error} {verified.out}"
        )


def assert_told(ended: Ended) -> None:
    """A run that failed but was not killed says why in one line."""
    refuse_traceback("run", ended)
    if ended.code < 0 or (ended.code and not ended.error.splitlines()[-1].startswith("error: ")):
        raise NotSurvivedError(f"the run ended with {ended.code} and said: {ended.error}")


# ---------------------------------------------------------------------------- faults of the machine


def shot(
    trial: Trial,
    action: Action,
    *,
    operations: frozenset[Operation] = EVERYTHING,
    roles: frozenset[Role] = EVERYBODY,
    ranks: int = 1,
    error: int = 0,
    number: int = 0,
    lasts: Lasts = Lasts.ONCE,
    seconds: int = 0,
) -> tuple[Place, Ended]:
    """A run that `action` befell, where it was, and how it ended."""
    site, counts = trial.site, trial.site.baseline(ranks).counts
    most = sum(counts[role][operation] for role in roles for operation in operations)
    for attempt in range(ATTEMPTS):
        place = site.place(ranks)
        half_done, rest = site.left(ranks, "half done"), 1.0
        if half_done and attempt < ATTEMPTS // 2 and trial.draw.random() < CHANCE_OF_LEFT:
            left = trial.draw.choice(half_done)
            site.begin_with(place, left)
            rest = 1 - left.share
        at = trial.draw.randint(1, max(1, round(most * rest) >> attempt))
        site.shim.arm(
            place.local,
            action,
            at,
            operations,
            roles,
            error=error,
            signal=number,
            lasts=lasts,
            seconds=seconds,
        )
        ended = site.start(place).wait()
        hit = site.shim.fired()
        site.shim.disarm()
        if hit is not None:
            trial.what = (
                f"at operation {at} of {most}, on {os.path.relpath(hit, place.local)}; "
                f"the run ended with {ended.code}"
            )
            if orphans := site.nursery.orphans():
                raise NotSurvivedError(f"{trial.what}; still alive: {orphans}")
            if ended.code and rest == 1.0:
                site.leave(place, ranks, "half done", min(at / most, MOST_DONE))
            return place, ended
    raise RuntimeError(f"{trial.kind}: no shot hit")


def kill_parent(trial: Trial) -> None:
    place, _ = shot(trial, Action.SIGNAL_PARENT, number=signal.SIGKILL)
    assert_survived(trial, place)


def terminate_parent(trial: Trial) -> None:
    place, ended = shot(trial, Action.SIGNAL_PARENT, number=signal.SIGTERM)
    refuse_traceback("run", ended)
    assert_survived(trial, place)


def kill_worker(trial: Trial) -> None:
    place, ended = shot(
        trial, Action.SIGNAL_SELF, roles=frozenset({Role.WORKER}), number=signal.SIGKILL
    )
    assert_told(ended)
    assert_survived(trial, place)


def kill_rank(trial: Trial) -> None:
    place, ended = shot(
        trial, Action.SIGNAL_SELF, roles=frozenset({Role.RANK}), ranks=2, number=signal.SIGKILL
    )
    assert_told(ended)
    assert_survived(trial, place, ranks=2)


def fill_disk(trial: Trial) -> None:
    lasts = trial.draw.choice([Lasts.ONCE, Lasts.ALWAYS])
    place, ended = shot(trial, Action.FAIL, operations=DISK, error=errno.ENOSPC, lasts=lasts)
    assert_told(ended)
    assert_survived(trial, place)


def fail_read(trial: Trial) -> None:
    lasts = trial.draw.choice([Lasts.ONCE, Lasts.SAME_FILE])
    place, ended = shot(
        trial, Action.FAIL, operations=frozenset({Operation.READ}), error=errno.EIO, lasts=lasts
    )
    assert_told(ended)
    assert_survived(trial, place)


def kill_prefect(trial: Trial) -> None:
    """Once or more often while a run goes on, which ends as if nothing had happened."""
    site, baseline, place = trial.site, trial.site.baseline(), trial.site.place()
    times, killed = trial.draw.randint(1, 3), 0
    running = site.start(place)
    for _ in range(times):
        time.sleep(trial.draw.uniform(0, baseline.seconds / times))
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "flows.server" in process.cmdline():
                    process.kill()
                    killed += 1
    ended = running.wait()
    trial.what = f"it was killed {killed} times; the run ended with {ended.code}"
    if not killed:
        raise RuntimeError("there was no server of Prefect's to kill")
    if ended.code or ended.error.count("\n") > MOST_LINES or ids_of(ended) != baseline.ids:
        raise NotSurvivedError(f"{trial.what} and said: {ended.error}")
    assert_survived(trial, place)


def tear_and_kill(trial: Trial) -> None:
    place, ended = shot(
        trial, Action.TEAR, operations=frozenset({Operation.WRITE}), number=signal.SIGKILL
    )
    if ended.code != -signal.SIGKILL:
        assert_told(ended)
    assert_survived(trial, place)


def tear_and_fill(trial: Trial) -> None:
    place, ended = shot(
        trial,
        Action.TEAR,
        operations=frozenset({Operation.WRITE}),
        error=errno.ENOSPC,
        lasts=Lasts.ALWAYS,
    )
    assert_told(ended)
    assert_survived(trial, place)


def move_clock(trial: Trial) -> None:
    """Back during a run, or between a killed run and its rerun, to which all files are then from
    the future.
    """
    seconds = trial.draw.choice([HOUR, 400 * 24 * HOUR])
    if trial.draw.random() < 0.5:
        place, ended = shot(trial, Action.MOVE_CLOCK, seconds=seconds)
        assert_told(ended)
    else:
        place, _ = shot(trial, Action.SIGNAL_PARENT, number=signal.SIGKILL)
    for path in sorted(place.local.rglob("*")):
        state = path.stat()
        os.utime(path, (state.st_atime + seconds, state.st_mtime + seconds))
    trial.what += f"; the clock went back by {seconds // HOUR} hours"
    assert_survived(trial, place)


# ------------------------------------------------------------------------------------- flipped bits


def flip(file: str) -> Callable[[Trial], None]:
    """The trial in which a bit of a file of that kind is flipped."""

    def strike(trial: Trial) -> None:
        left = _with(trial, file)
        place = trial.site.place()
        trial.site.begin_with(place, left)
        path, _ = _flip(trial, place, FILES[file])
        flipped = path.read_bytes()
        assert_survived(trial, place)
        if path.exists() and path.read_bytes() == flipped:
            raise NotSurvivedError(f"{trial.what} is still wrong, and nothing says so")

    return strike


def edit(file: str) -> Callable[[Trial], None]:
    """The trial in which a bit of a record that cannot be made again is flipped: a line must name
    it.
    """

    def strike(trial: Trial) -> None:
        site = trial.site
        site.baseline()
        place = site.place()
        site.begin_with(place, site.left(1, "finished")[0])
        if file == "a tag":
            tagged = site.wind(place, "tag", f"{RUN}@1", "good", "--root", place.root)
            if tagged.code:
                raise NotSurvivedError(f"tag ended with {tagged.code}: {tagged.error}")
        path, content = _flip(trial, place, EDITED[file])
        name = str(path.relative_to(place.local))
        ended = site.wind(place, "run", "tiny.yaml", "--json")
        if ended.code == 0:
            ended = site.wind(place, "verify", "--root", place.root)
        if ended.code == 0 or name not in ended.error or len(ended.error.splitlines()[-1]) == 0:
            raise NotSurvivedError(
                f"{trial.what}; neither a rerun nor verify named it: {ended.code} {ended.error}"
            )
        trial.is_answered = True
        path.write_bytes(content)
        if file == "a tag":
            site.wind(place, "tag", f"{RUN}@1", "good", "--delete", "--root", place.root)
        assert_survived(trial, place)

    return strike


def _with(trial: Trial, file: str) -> Left:
    """A root that has such files: of the finished run, or of one that was killed in time."""
    site = trial.site
    site.baseline()
    if file not in INTERRUPTED:
        return trial.draw.choice(
            [*site.left(1, "finished"), *_having(FILES[file], site.left(1, "half done"))]
        )
    among = INTERRUPTED[file]
    if not site.left(1, among):
        place = site.place()
        made = frozenset({Operation.MAKE, Operation.NAME})
        site.shim.arm(
            place.local, Action.SIGNAL_PARENT, 1, made, signal=signal.SIGKILL, among=among
        )
        site.start(place).wait()
        site.shim.disarm()
        site.nursery.orphans()
        site.leave(place, 1, among, 0.5)
    return site.left(1, among)[0]


def _having(pattern: str, kept: list[Left]) -> list[Left]:
    return [left for left in kept if _matching(pattern, left.root)]


def _matching(pattern: str, root: Path) -> list[Path]:
    found = (
        path
        for path in sorted(root.rglob("*"))
        if re.fullmatch(pattern, path.relative_to(root).as_posix())
    )
    return [path for path in found if path.is_file() and path.stat().st_size]


def _flip(trial: Trial, place: Place, pattern: str) -> tuple[Path, bytes]:
    """Flip a bit of a file that `pattern` matches; the file, and what it held."""
    path = trial.draw.choice(_matching(pattern, place.local))
    content = path.read_bytes()
    bit = trial.draw.randrange(8 * len(content))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    trial.what = f"bit {bit} of {path.relative_to(place.local)}"
    return path, content


# -------------------------------------------------------------------------------------- two at once


def _two(trial: Trial, *settings: str) -> tuple[Place, list[Ended]]:
    """Where two runs began within a second, the later with `settings`, and how they ended."""
    site, place = trial.site, trial.site.place()
    first = site.start(place)
    time.sleep(trial.draw.uniform(0, 1))
    second = site.nursery.start("run", "tiny.yaml", *settings, "--json", folder=place.folder)
    return place, [first.wait(), second.wait()]


def run_two(trial: Trial) -> None:
    """One of them is refused, or both end well."""
    baseline = trial.site.baseline()
    place, ended = _two(trial)
    for each in ended:
        assert_told(each)
        if each.code and "is going on in" not in each.error:
            raise NotSurvivedError(f"of two at once one said: {each.error}")
    if all(each.code for each in ended) or any(
        ids_of(each) != baseline.ids for each in ended if each.code == 0
    ):
        raise NotSurvivedError(f"two at once ended with {[each.code for each in ended]}")
    trial.what = f"they ended with {[each.code for each in ended]}"
    assert_survived(trial, place)


def run_two_names(trial: Trial) -> None:
    """Both end well, with the same versions."""
    site = trial.site
    baseline = site.baseline()
    place, ended = _two(trial, "--set", "run=other")
    for each in ended:
        refuse_traceback("run", each)
        if each.code or ids_of(each) != baseline.ids:
            raise NotSurvivedError(f"of two runs one ended with {each.code}: {each.error}")
    forgotten = site.wind(place, "forget", "other", "--root", place.root)
    if forgotten.code:
        raise NotSurvivedError(f"forget ended with {forgotten.code}: {forgotten.error}")
    trial.what = "both ended well"
    assert_survived(trial, place, others=r"runs/other/(config\.json|versions/\d+\.forgotten)")


# --------------------------------------------------------------------------------- the object store


def remote(strike: Callable[[Trial], tuple[Callable[[], object], str]]) -> Callable[[Trial], None]:
    """The trial in which the proxy does what `strike` says at a request that is drawn."""

    def run(trial: Trial) -> None:
        site = trial.site
        assert site.proxy is not None
        proxy = site.proxy
        baseline = site.baseline(is_remote=True)
        act, what = strike(trial)
        place, most = site.place(is_remote=True), baseline.requests
        if late := [left for left in site.left(1, "half done") if left.share > 0.5]:
            left = trial.draw.choice(late)
            site.begin_with(place, left)
            most = round(most * (1 - left.share))
        at = trial.draw.randint(1, most)
        when = trial.draw.choice(CUTS) if "killed" in what else "before"
        proxy.arm(at, act, when)
        ended = site.start(place).wait()
        proxy.restart()
        proxy.calm()
        trial.what = f"{what} {when} request {at} of {most}; the run ended with {ended.code}"
        if ended.code != -signal.SIGKILL:
            assert_told(ended)
        assert_survived(trial, place, is_remote=True)

    return run


def _down(trial: Trial) -> tuple[Callable[[], object], str]:
    assert trial.site.proxy is not None
    proxy, seconds = trial.site.proxy, trial.draw.choice([0.1, 1.0, 4.0])
    return lambda: proxy.kill_for(seconds), f"the server was killed for {seconds} s"


def _gone(trial: Trial) -> tuple[Callable[[], object], str]:
    assert trial.site.proxy is not None
    return trial.site.proxy.kill, "the server was killed for the rest of the run"


def _slow(trial: Trial) -> tuple[Callable[[], object], str]:
    assert trial.site.proxy is not None
    proxy, seconds = trial.site.proxy, trial.draw.choice([0.2, 1.0])
    return lambda: proxy.slow(int(5 / seconds), seconds), f"the server took {seconds} s longer"


def _erring(trial: Trial) -> tuple[Callable[[], object], str]:
    assert trial.site.proxy is not None
    proxy, status, count = trial.site.proxy, trial.draw.choice([500, 503]), trial.draw.randint(1, 5)
    return lambda: proxy.fail(count, status), f"the server answered {status} {count} times"


def _killed(trial: Trial) -> tuple[Callable[[], object], str]:
    return lambda: os.kill(trial.site.started, signal.SIGKILL), "the run was killed"


KINDS: Mapping[str, Callable[[Trial], None]] = {
    "SIGKILL of the parent": kill_parent,
    "SIGTERM of the parent": terminate_parent,
    "SIGKILL of a worker": kill_worker,
    "SIGKILL of a training rank": kill_rank,
    "Prefect's server killed": kill_prefect,
    "disk full": fill_disk,
    "read error": fail_read,
    "torn write, then SIGKILL": tear_and_kill,
    "torn write, then disk full": tear_and_fill,
    "clock moved back": move_clock,
    **{f"flipped bit in {file}": flip(file) for file in FILES},
    **{f"flipped bit in {file}": edit(file) for file in EDITED},
    "two runs of one name at once": run_two,
    "two runs of two names at once": run_two_names,
    "S3 server killed and restarted": remote(_down),
    "S3 server killed until the rerun": remote(_gone),
    "S3 server slow": remote(_slow),
    "S3 server answering 500 or 503": remote(_erring),
    "SIGKILL of the parent, root on S3": remote(_killed),
}
OFTEN = {  # how many of a hundred; of every other kind there is one
    "SIGKILL of the parent": 14,
    "SIGTERM of the parent": 7,
    "SIGKILL of a worker": 10,
    "SIGKILL of a training rank": 6,
    "Prefect's server killed": 3,
    "disk full": 10,
    "read error": 9,
    "torn write, then SIGKILL": 5,
    "torn write, then disk full": 4,
    "clock moved back": 3,
    "two runs of one name at once": 2,
    "two runs of two names at once": 2,
    "S3 server killed and restarted": 3,
    "S3 server slow": 2,
    "S3 server answering 500 or 503": 2,
}


def drawn(faults: int, seed: int, kinds: str = "") -> list[tuple[str, random.Random]]:
    """The kinds of `faults` trials in the order in which they come, each with what decides its
    place.
    """
    draw = random.Random(seed)
    wanted = {kind: OFTEN.get(kind, 1) for kind in KINDS if kinds in kind}
    several = [kind for kind, count in wanted.items() for _ in range(count - 1)]
    chosen = draw.sample(list(wanted), min(faults, len(wanted)))  # each once, as far as it goes
    while len(chosen) < faults:
        draw.shuffle(several)
        chosen += (several or list(wanted))[: faults - len(chosen)]
    draw.shuffle(chosen)
    return [(kind, random.Random(f"{seed} {number} {kind}")) for number, kind in enumerate(chosen)]
