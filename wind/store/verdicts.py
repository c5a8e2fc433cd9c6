"""Verdicts: what judges answered, so that no question is asked twice.

The answers of one judge are lines of JSON in `<root>/verdicts/<judge>/`, one file for each time
that a process asked. A line is written as soon as its answer is there, and has our stamp (see
`wind.store.stamps`): one that somebody else wrote is not taken for an answer. A damaged line, such
as the last one of a process that was killed, is skipped. In an object store, a file appears when
the process has asked all it wanted, and stays in the cache of this machine until then.

Nothing removes verdicts: they are small, and paid for.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any, Final

from wind.machine.terminal import complain
from wind.records import Record
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.stamps import STAMP, is_ours, refuse, stamp_of
from wind.store.storage import LocalStorage

FOLDER: Final = "verdicts"


class Answer(Record):
    """What a judge answered to one question."""

    # the digest of the question, with everything that determines the answer
    question: str
    text: str
    # what the text says; None if it says nothing
    verdict: float | None
    # whether the answer was ended by its length
    is_cut: bool
    input_tokens: int
    output_tokens: int


class Verdicts:
    """The answers of one judge, open for more.

    A line is checked when its answer is asked for: of many, a stage may need few.
    """

    def __init__(self, store: Store, judge: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{judge}"
        # by question: the fields of its lines, each with the file it is in
        self._lines: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self._answers: dict[str, Answer] = {}
        self._lock = Lock()
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        self._read()

    def find(self, question: str) -> Answer | None:
        """Return the answer to a question."""
        if question not in self._answers:
            for name, fields in self._lines.pop(question, []):
                if (answer := self._checked(name, fields)) is not None:
                    self._answers[question] = answer
                    break
        return self._answers.get(question)

    def answers(self) -> list[Answer]:
        """Return all answers."""
        questions = {*self._lines, *self._answers}
        return [answer for each in questions if (answer := self.find(each)) is not None]

    def keep(self, answer: Answer) -> None:
        """Keep an answer, at once."""
        fields = answer.model_dump(mode="json")
        line = json.dumps({**fields, STAMP: stamp_of("verdict", fields)}) + "\n"
        with self._lock:
            self._answers[answer.question] = answer
            if self._file is None:
                name = f"{self._folder}/{time.time_ns():x}-{os.getpid()}.jsonl"
                self._path = self._store.local / name
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab")
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        """Share what was kept with other machines."""
        if self._file is None or self._path is None:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        if not isinstance(self._store.storage, LocalStorage):
            self._store.storage.put(f"{self._folder}/{self._path.name}", self._path)
            self._path.unlink()
        self._file = self._path = None

    def _read(self) -> None:
        storage, here = self._store.storage, LocalStorage(self._store.local)
        damaged = 0
        for each in (storage,) if isinstance(storage, LocalStorage) else (storage, here):
            for entry in each.files(self._folder):
                with suppress(FileNotFoundError):
                    for line in each.read(entry.name).splitlines():
                        try:
                            fields = sealed_json.read_unsealed(line)
                            question = str(fields["question"])
                        except (ValueError, KeyError):
                            damaged += 1
                            continue
                        self._lines.setdefault(question, []).append((entry.name, fields))
        if damaged:
            complain(
                f"{self._store.url}/{self._folder}: {damaged} damaged lines are not taken for "
                "answers"
            )

    def _checked(self, name: str, fields: dict[str, Any]) -> Answer | None:
        """Return the answer in the fields of a line in the file `name`, if it is ours."""
        if not is_ours("verdict", fields):
            refuse(self._store.address, name)
            complain(f"{self._store.url}/{name}: an answer is not ours, and is not taken")
            return None
        return Answer.model_validate(
            {field: value for field, value in fields.items() if field != STAMP}
        )


@contextmanager
def verdicts_of(store: Store, judge: str, *, alone: bool) -> Iterator[Verdicts]:
    """Open the answers of a judge for the duration of the block.

    With `alone`, no other process has them open so at the same time.
    """
    if alone:
        with (
            store.storage.lock(f"{FOLDER}/{judge}.lock"),
            verdicts_of(store, judge, alone=False) as verdicts,
        ):
            yield verdicts
        return
    verdicts = Verdicts(store, judge)
    try:
        yield verdicts
    finally:
        verdicts.close()
