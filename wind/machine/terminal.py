"""The way to a terminal: all that is printed goes through here, so that no data can do more there
than be read.

Control characters, escape sequences, marks that reverse the direction of text, line breaks, what
has no width and what the terminal's encoding does not know are shown as Python escapes them:
`\\x1b`, `\\u202e`, `\\n`.
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

WIDTH: Final = 160  # of what is no terminal


def harmless(text: str, encoding: str = "utf-8") -> str:
    """`text` on one line, with what a terminal would obey, hide or not know escaped."""
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
    """A value or a model as JSON, in which all that is not ASCII is escaped; what JSON has no word
    for is text.
    """
    plain = json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else value
    return json.dumps(plain, indent=indent, default=str).replace("\x7f", r"\u007f")


def is_unicode(stream: TextIO) -> bool:
    """Whether every character can be written to `stream`."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def guard() -> None:
    """From now on, let what Python and libraries warn of on standard error also be read and no
    more.
    """
    warnings.showwarning = _complain_of
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_HarmlessFormatter())


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose usage errors show arguments as `harmless` does."""

    def _print_message(self, message: str, file: Any = None) -> None:
        lines = message.removesuffix("\n").split("\n")
        _write(file or sys.stderr, lines if message else [])


class PlainConsole(Console):
    """A rich console for data: it knows no markup, and shows every text as `harmless` does.

    Line breaks within a rich `Text` are kept: what of it comes from data has to be `harmless` on
    its own.
    """

    def __init__(
        self,
        *,
        file: TextIO | None = None,
        width: int = WIDTH,
        quiet: bool = False,
        soft_wrap: bool = False,
    ) -> None:
        """A console on `file`, or standard output; `width` columns wide where that is no terminal."""
        super().__init__(
            file=file, quiet=quiet, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
        )
        if not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """The `text` as it is, whatever markup it may look like."""
        return super().render_str(
            harmless(text), **options | {"markup": False, "emoji": False, "highlight": False}
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See `Console`; texts that were put together elsewhere are made harmless, too."""
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
