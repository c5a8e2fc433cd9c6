"""Questions of MT-Bench and AlpacaEval, in the files that those publish."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from wind.errors import ConfigError, first_line
from wind.files import read_plain
from wind.nesting import json_value

ChatKind = Literal["mt_bench", "alpaca_eval"]
FIELDS: Final = {"mt_bench": "question_id and turns", "alpaca_eval": "instruction and output"}


@dataclass(frozen=True)
class Question:
    """What a user asks, turn after turn."""

    item: str
    turns: tuple[str, ...]
    # for each turn: a right answer, or the reference's; None if there is none
    targets: tuple[str | None, ...]


def read_questions(kind: ChatKind, path: Path, setting: str = "data") -> list[Question]:
    """Read the questions in the file at `path`, JSON lines or one JSON list.

    Raises ConfigError, in one line that names `setting`, for anything else.
    """
    try:
        text = read_plain(path)
        rows = (
            json_value(text)
            if text.lstrip().startswith(b"[")
            else [json_value(line) for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting} {path} cannot be read ({first_line(error)}): name a file of JSON lines, or "
            "of one JSON list"
        ) from error
    questions: dict[str, Question] = {}
    for number, row in enumerate(rows, 1):
        try:
            question = _question(kind, number - 1, row)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{setting} {path}: question {number} has no {FIELDS[kind]} ({error!r}): name the "
                "file that the benchmark publishes"
            ) from error
        if question.item in questions:
            raise ConfigError(f"{setting} {path}: two questions have the id {question.item}")
        questions[question.item] = question
    if not questions:
        raise ConfigError(f"{setting} {path} holds no question")
    return list(questions.values())


def _question(kind: ChatKind, place: int, row: dict[str, Any]) -> Question:
    if kind == "alpaca_eval":
        return Question(f"{place:05d}", (_text(row["instruction"]),), (_text(row["output"]),))
    turns = tuple(map(_text, row["turns"]))
    if not turns:
        raise ValueError("no turns")
    references = row.get("reference") or []
    targets = tuple(
        references[turn] if turn < len(references) else None for turn in range(len(turns))
    )
    return Question(f"{int(row['question_id']):05d}", turns, targets)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{json.dumps(value)[:40]} is no text")
    return value
