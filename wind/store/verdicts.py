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
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Final

from pydantic import ValidationError

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
    """The answers of one judge, open for more."""

    def __init__(self, store: Store, judge: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{judge}"
        self._answers: dict[str, Answer] = {}
        self._lock = Lock()
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        # lines that were not taken
        self.skipped = 0
        self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, question: str) -> Answer | None:
        """Return the answer to a question."""
        return self._answers.get(question)

    def answers(self) -> Iterator[Answer]:
        """Yield all answers."""
        yield from list(self._answers.values())

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
        for each in (storage,) if isinstance(storage, LocalStorage) else (storage, here):
            for entry in each.files(self._folder):
                with suppress(FileNotFoundError):
                    self._take(entry.name, each.read(entry.name))
        if self.skipped:
            print(
                f"{self._store.url}/{self._folder}: {self.skipped} lines are damaged or not ours, "
                "and were not taken for answers",
                file=sys.stderr,
            )

    def _take(self, name: str, content: bytes) -> None:
        for line in content.splitlines():
            try:
                fields = sealed_json.read_unsealed(line)
                stamp = fields.pop(STAMP, None)
                answer = Answer.model_validate(fields)
            except (ValueError, ValidationError):
                self.skipped += 1
                continue
            if not is_ours("verdict", {**fields, STAMP: stamp}):
                refuse(self._store.address, name)
                self.skipped += 1
                continue
            self._answers[answer.question] = answer


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
