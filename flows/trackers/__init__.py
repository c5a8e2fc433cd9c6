"""Tell experiment trackers about published versions.

Each tracker is told in a process of its own, in a bounded time: what it prints, what it hangs on
and what it leaves in a process never reach the run. A run has one counterpart in each tracker,
however often it is continued; which versions a tracker has heard of is kept beside the run, so that
a rerun tells only what is missing.
"""

import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from flows.trackers.reports import Report
from tasks.run import Run, current_run
from wind.config.base import Section
from wind.config.recipe import DistillConfig
from wind.config.trackers import TRACKERS, TrackersConfig
from wind.errors import ConfigError, first_line
from wind.fingerprints import digest
from wind.machine import processes
from wind.nesting import json_value
from wind.records import Record
from wind.redaction import redacted
from wind.store.versions import Version

# Trackers report their own use to nobody.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
# of the reason why a tracker failed
MOST_CHARACTERS = 160


class Message(Record):
    """What the process of a tracker reads from its standard input."""

    tracker: str
    section: dict[str, Any]
    folder: str  # into which it may write
    report: Report


class Heard(Record):
    """What a tracker has heard of a run."""

    key: str  # of its counterpart of the run
    versions: tuple[str, ...] = ()  # their ids


def refuse_missing(trackers: TrackersConfig) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in trackers.chosen():
        if find_spec(name) is None:
            raise ConfigError(
                f"trackers.{name} needs a package that is not installed: "
                f"pip install {TRACKERS[name]}"
            )


class Audience:
    """The trackers of a run that still listen."""

    def __init__(self, run: Run[DistillConfig]) -> None:
        """Raises ConfigError for a tracker whose package is not installed."""
        self._trackers = run.config.trackers
        if not run.planning:
            refuse_missing(self._trackers)
        # a plan may know versions, and tells nobody
        self._listening = {} if run.planning else self._trackers.chosen()

    def tell(self, version: Version | None) -> None:
        """Tell each tracker about `version`, unless it has heard of it.

        One that fails is named in a warning, and left alone for the rest of the run.
        """
        run = current_run()
        for name, section in [*self._listening.items()] if version is not None else ():
            assert version is not None
            try:
                _tell(run, name, section, version)
            except (_DeafError, OSError) as error:
                del self._listening[name]
                run.terminal.line(
                    f"  warning: trackers.{name} did not take {version.run}@{version.number}, "
                    f"{redacted(first_line(error))}; the run goes on, and a rerun tells it again"
                )


class _DeafError(Exception):
    """A tracker failed, or took too long."""


def _tell(run: Run[DistillConfig], name: str, section: Section, version: Version) -> None:
    kept = f"runs/{version.run}/trackers/{name}-{_digest(section)}.json"
    heard = _heard(run, kept)
    if version.id in heard.versions:
        return
    # The counterpart is known before it is made: a process that dies half way makes no second one.
    run.store.storage.write(kept, heard.model_dump_json().encode())
    trackers = run.config.trackers
    report = Report.of(version, run.config, run.store, key=heard.key, prompts=trackers.prompts)
    folder = Path(getattr(section, "folder", None) or run.store.local / "trackers" / name)
    message = Message(
        tracker=name,
        section=section.model_dump(mode="json"),
        folder=str(folder.absolute()),
        report=report,
    )
    _speak(message, trackers.timeout)
    told = heard.model_copy(update={"versions": (*heard.versions, version.id)})
    run.store.storage.write(kept, told.model_dump_json().encode())


def _digest(section: Section) -> str:
    """Return a name for the place that `section` says: another place has heard of nothing."""
    return digest(section.model_dump(mode="json"))[:12]


def _heard(run: Run[DistillConfig], kept: str) -> Heard:
    try:
        return Heard.model_validate(json_value(run.store.storage.read(kept)))
    except (FileNotFoundError, ValueError):
        return Heard(key=uuid4().hex[:16])


def _speak(message: Message, timeout: float) -> None:
    """Run the process of a tracker. Raises _DeafError if it fails or takes too long."""
    pipe = subprocess.PIPE
    with (
        TemporaryDirectory() as temporary,
        processes.start(
            processes.python("-m", "flows.trackers"),
            env=_environment(TMPDIR=temporary),
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            descendants=True,
        ) as process,
    ):
        try:
            said, _ = process.communicate(message.model_dump_json().encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            raise _DeafError(f"it took more than {timeout:g} seconds") from None
        finally:
            process.end()
    if process.returncode or said:
        why = said.decode(errors="replace").strip()
        raise _DeafError(why[:MOST_CHARACTERS] or f"its process ended with {process.returncode}")


def _environment(**changes: str) -> Mapping[str, str]:
    """Return the environment of a tracker's process.

    Variables of Trackio would send to the Hub what its section says is local.
    """
    given = processes.environment(**QUIET, **changes)
    return {name: value for name, value in given.items() if not name.startswith("TRACKIO_")}
