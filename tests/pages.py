"""The code blocks of README.md and docs/, and what the tests do with each.

CONTRIBUTING.md describes the languages and the comment that keeps a block from being run.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/bandit/README.md"]
MARK = re.compile(r"<!-- not run: (.+) -->")
RUN = {"bash", "console", "python"}
READ = {"yaml", "json"}  # sections of a recipe, and rows
SHOWN = {"text", "math", "mermaid"}
COMMAND = re.compile(r"(?:wind|make|python -m|pip|uv) \S")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    file: str | None  # of `file=NAME`: what the block is the content of
    text: str
    reason: str | None  # why it is not run; None if it is

    @property
    def place(self) -> str:
        """Where it is, as an editor opens it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").split("\n")
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language, _, rest = lines[start][3:].partition(" ")
        marked = MARK.fullmatch(lines[start - 1]) if start else None
        yield Block(
            page,
            start + 1,
            language,
            rest.removeprefix("file=") if rest.startswith("file=") else None,
            "\n".join(lines[start + 1 : number]),
            marked[1] if marked else None,
        )
        start = None
    assert start is None, f"{page} ends within a block"


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a `bash` or `console` block, each with the output shown for it."""
    shown = block.text.split("\n")
    if block.language == "bash":
        shown = [f"$ {line}" for line in shown]
    found: list[tuple[str, list[str]]] = []
    begun = ""
    for line in shown:
        if line.startswith("$ ") or begun:
            begun += line.removeprefix("$ ")
            if begun.endswith("\\"):
                begun = begun[:-1]
            elif not _is_whole(begun):
                begun += "\n"
            else:
                found += [(begun, [])] if words(begun) else []
                begun = ""
        else:
            found[-1][1].append(line)
    assert not begun, f"{block.place}: the last command does not end"
    return [(command, "\n".join(output)) for command, output in found]


def words(command: str) -> list[str]:
    """A command as the shell splits it, without its comment."""
    return shlex.split(command, comments=True)


def _is_whole(command: str) -> bool:
    try:
        words(command)
    except ValueError:
        return False
    return True
