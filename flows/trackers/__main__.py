"""Tell one tracker about one version: `python -m flows.trackers`.

Reads a message from standard input, and writes to standard output why it failed, if it did.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from flows.trackers import Message
from flows.trackers.reports import Report
from wind.errors import first_line


class Tracker(Protocol):
    """A module of this package that knows one tracker."""

    def log(self, section: dict[str, str], report: Report, folder: Path) -> None:
        """Log `report` to the tracker's run with its key, which is made if there is none.

        Files are written into `folder` only.
        """


def main() -> None:
    """Log the report; what the tracker prints goes to standard error."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    message = Message.model_validate_json(sys.stdin.buffer.read())
    folder = Path(message.folder)
    tracker = cast(Tracker, import_module(f"flows.trackers.{message.tracker}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tracker.log(message.section, message.report, folder)
    except Exception as error:
        # whatever a tracker raises
        with os.fdopen(answer, "w", encoding="utf-8") as pipe:
            pipe.write(f"{type(error).__name__}: {first_line(error)}")


if __name__ == "__main__":
    main()
