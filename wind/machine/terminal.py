r"""Print to a terminal safely: data can be read and nothing more.

All output goes through here. Control characters, escape sequences, marks that reverse the direction
of text, line breaks, characters without width, and those that the terminal's encoding lacks are
shown as Python escapes them: `\\x1b`, `\\u202e`, `\\n`.
"""

import argparse
import json
import logging
import sys
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any, Final, TextIO

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# columns of anything that is not a terminal
WIDTH: Final = 160


def harmless(text: str, encoding: str = "utf-8") -> str:
    """Return `text` on one line, with anything but visible characters escaped.

    Includes what the terminal's `encoding` cannot show.
    """
    if not text.isprintable():
        text = "".join(
            character if _is_seen(character) else _escaped(character) for character in text
        )
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(*lines: object) -> None:
    """Print each of `lines` on standard output, as one line."""
    _write(sys.stdout, lines)


def complain(line: str) -> None:
    """Print a line on standard error."""
    _write(sys.stderr, [line])


def say_json(value: Any, indent: int | None = 1) -> None:
    """Print a value or a model as JSON on standard output."""
    say(*json_text(value, indent).split("\n"))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value or a model as JSON in ASCII.

    Values that JSON cannot represent become text.
    """
    plain = json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else value
    return json.dumps(plain, indent=indent, default=str).replace("\x7f", r"\u007f")


def is_unicode(stream: TextIO) -> bool:
    """Return True if every character can be written to `stream`."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def guard() -> None:
    """Make warnings of Python and its libraries harmless to the terminal."""
    warnings.showwarning = _complain_of
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_HarmlessFormatter())


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose usage errors pass through `harmless`."""

    def _print_message(self, message: str, file: Any = None) -> None:
        lines = message.removesuffix("\n").split("\n")
        _write(file or sys.stderr, lines if message else [])


class PlainConsole(Console):
    """A rich console for data, without markup and with harmless text.

    All text passes through `harmless`. Line breaks within a rich `Text` are kept, so the caller
    must make those parts of it harmless that come from data.
    """

    def __init__(
        self,
        *,
        file: TextIO | None = None,
        width: int = WIDTH,
        quiet: bool = False,
        soft_wrap: bool = False,
    ) -> None:
        """Open a console on `file`, by default standard output.

        It is `width` columns wide unless it is a terminal.
        """
        super().__init__(
            file=file, quiet=quiet, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
        )
        if not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` without interpreting markup."""
        return super().render_str(
            harmless(text), **options | {"markup": False, "emoji": False, "highlight": False}
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render like `Console`, and make texts that were built elsewhere harmless too."""
        for segment in super().render(renderable, options):
            yield (
                segment if segment.control else Segment(self._harmless(segment.text), segment.style)
            )

    def _harmless(self, text: str) -> str:
        return "\n".join(harmless(line, self.encoding) for line in text.split("\n"))


class _HarmlessFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(harmless, super().format(record).split("\n")))


def _complain_of(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _write(file or sys.stderr, [f"{filename}:{lineno}: {category.__name__}: {message}"])


def _write(stream: TextIO, lines: Iterable[object]) -> None:
    for line in lines:
        print(harmless(str(line), stream.encoding or "utf-8"), file=stream)


def _is_seen(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
