"""A run's progress: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from wind.machine.terminal import PlainConsole, is_unicode

SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """Progress display of one stage."""

    def __call__(self, done: float, total: float) -> None:
        """Show that `done` of `total` is finished."""


class Terminal:
    """Terminal output of a run, written to standard error.

    Standard output is left to results.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = PlainConsole(file=sys.stderr, quiet=quiet, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    @contextmanager
    def bar(self, name: str) -> Iterator[Bar]:
        """Show a progress bar called `name` during the block.

        Outside a terminal, it is a line every ten seconds.
        """
        if self.console.is_terminal:
            columns = (
                SpinnerColumn("dots" if is_unicode(sys.stderr) else "line"),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(name, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total)
        else:
            yield self._lines(name)

    def _lines(self, name: str) -> Bar:
        last = time.monotonic()

        def show(done: float, total: float) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.line(f"    {name}: {done:g} of {total:g}")

        return show
