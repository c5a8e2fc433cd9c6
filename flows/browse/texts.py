"""What is written on the screen: texts with styles, made harmless, never parsed as markup.

Nothing is told by color alone: what a difference removed and added stands between the marks of
wdiff, and special tokens between brackets.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import polars as pl
from rich.text import Text

from wind.inspection.detail import Detail, Response
from wind.inspection.fields import FIELDS, Field
from wind.inspection.notes import Note
from wind.inspection.tokens import Stretch
from wind.inspection.words import Part
from wind.machine.terminal import harmless

# characters of a response or prompt; the rest is counted
LONGEST: Final = 20_000
# characters of a text in the list of prompts
IN_LIST: Final = 200
# columns of the list, the most important first, with their widths
COLUMNS: Final = {
    "text": 24,
    "split": 5,
    "reward_mean": 8,
    "reward_gain": 8,
    "win_rate": 8,
    "tokens_mean": 8,
    "truncated": 8,
    "disagreement": 8,
    "rank_flips": 8,
    "tie_share": 8,
    "samples": 8,
    "check_failures": 8,
}
HEADERS: Final = {
    "reward_mean": "reward",
    "tokens_mean": "length",
    "truncated": "cut",
    "disagreement": "disagree",
    "rank_flips": "flips",
    "check_failures": "failures",
}
NOTHING: Final = "-"


def lines(text: str) -> str:
    """Return a text of several lines, each of them harmless, and the end of a long one left out."""
    shown = "\n".join(map(harmless, text[:LONGEST].split("\n")))
    left = len(text) - LONGEST
    return f"{shown}\n[... {left:,} more characters: wind prompt shows them]" if left > 0 else shown


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` after the point, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def chosen_columns(width: int, sort: str) -> list[str]:
    """Return the fields that fit into `width` columns, with the one that is sorted by."""
    field = sort.removeprefix("-")
    wanted = [*COLUMNS]
    if field in FIELDS and field not in ("", "prompt_id", "flag"):
        wanted = ["text", *dict.fromkeys([field, *COLUMNS])]
    left, found = width - 5, []
    for name in dict.fromkeys(wanted):
        left -= COLUMNS.get(name, 8) + 2
        if left < 0:
            break
        found.append(name)
    return found


def header(name: str, sort: str) -> Text:
    """Return the head of a column, with an arrow if prompts are sorted by it."""
    arrow = {name: " ^", f"-{name}": " v"}.get(sort, "")
    return Text(HEADERS.get(name, FIELDS[name].title) + arrow, style="bold")


def cell(row: dict[str, Any], name: str) -> Text:
    """Return what the list shows of one field of a prompt."""
    field: Field = FIELDS[name]
    value = row[name]
    if field.kind == "number":
        return Text(number(value, field.digits), justify="right")
    shown = NOTHING if value is None else harmless(" ".join(str(value)[:IN_LIST].split()))
    return Text(shown, no_wrap=True, overflow="ellipsis")


def mark(row: dict[str, Any]) -> Text:
    """Return the marks of a prompt: a flag, a note, failed checks."""
    marks = ("!" * bool(row["flag"]), "n" * bool(row["note"]), "x" * bool(row["check_failures"]))
    return Text("".join(marks), style="bold")


def head(
    detail: Detail, note: Note | None, asked: Sequence[Stretch] | None, width: int = 78
) -> Text:
    """Return what is said above the responses to a prompt: what was asked, its answer, a note."""
    text = Text(overflow="fold")
    count = len(detail.responses)
    text.append(f"{detail.prompt_id[:12]}  {detail.split}  {count} responses")
    if note is not None and note.flag:
        text.append("  ! flagged", style="bold")
    if note is not None and note.note:
        text.append("\nnote: ", style="bold")
        text.append(lines(note.note))
    for line in detail.damage:
        text.append("\ndamaged: ", style="bold")
        text.append(harmless(line))
    if asked is not None:
        text.append("\n")
        text.append_text(spelled(asked))
    else:
        for message in detail.messages:
            text.append(f"\n{harmless(str(message.get('role')))}: ", style="bold")
            text.append(lines(str(message.get("content") or "")))
    if detail.answer is not None:
        text.append("\ngold answer: ", style="bold")
        text.append(lines(detail.answer))
    return text


def told(response: Response) -> str:
    """Return the numbers of a response in one line."""
    said = [f"reward {number(response.reward)}"]
    said += [f"{harmless(name)} {number(value)}" for name, value in response.components.items()]
    said.append(f"win rate {number(response.win_rate)}")
    if response.rank is not None:
        said.append(f"rank {response.rank}")
    if response.accuracy is not None:
        said.append("right" if response.accuracy else "wrong")
    said.append(f"{response.tokens} tokens")
    if response.finish_reason == "length":
        said.append("TRUNCATED")
    if response.role is not None:
        said.append(harmless(response.role))
    return ", ".join(said)


def sample(response: Response, body: Text, *, is_selected: bool) -> Text:
    """Return a response with its numbers; the selected one has an arrow."""
    text = Text(overflow="fold")
    step = "" if response.step is None else f" step {response.step}"
    drawn = "" if response.drawn_from in (None, "policy") else f" of the {response.drawn_from}"
    text.append(
        f"{'>' if is_selected else ' '} sample {response.sample_index}{step}{drawn}: ",
        style="bold reverse" if is_selected else "bold",
    )
    text.append(told(response), style="italic")
    text.append("\n")
    text.append_text(body)
    return text


def plain(text: str) -> Text:
    """Return a response as it is."""
    return Text(lines(text), overflow="fold")


def spelled(stretches: Iterable[Stretch]) -> Text:
    """Return a text with its special tokens in brackets."""
    text = Text(overflow="fold")
    for stretch in stretches:
        shown = lines(stretch.text)
        text.append(f"[{shown}]" if stretch.is_special else shown, "reverse" * stretch.is_special)
    return text


def difference(parts: Sequence[Part], iteration: int) -> Text:
    """Return what changed in a sample since the iteration before, as wdiff marks it."""
    text = Text(f"since iteration {iteration}: ", style="bold", overflow="fold")
    if all(part.sign == "=" for part in parts):
        text.append("nothing changed\n", style="not bold")
    else:
        text.append("[-removed-] {+added+}\n", style="not bold")
    forms = {"=": ("", "", ""), "-": ("[-", "-]", "strike"), "+": ("{+", "+}", "underline")}
    for part in parts:
        begin, end, style = forms[part.sign]
        text.append(f"{begin}{lines(part.text)}{end}", style=f"not bold {style}")
    return text


def rows_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the prompts of a page."""
    return frame.with_columns(pl.col("text").str.slice(0, IN_LIST)).to_dicts()
