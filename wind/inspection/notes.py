"""Notes: what a reader writes about a prompt, and whether it is flagged.

They lie beside the run, in `runs/<run>/notes/<prompt_id>.json`, one file for each prompt, and never
in a dataset. Each is written as a whole, so that of two readers of the same prompt the last one
wins, and readers of different prompts never meet.
"""

import re
import time
from collections.abc import Iterator
from typing import Final

from pydantic import Field, ValidationError

from wind.errors import ConfigError, DatasetError, first_line
from wind.records import Record
from wind.store.datasets import Store
from wind.store.storage import Entry
from wind.store.versions import runs

PROMPT_ID: Final = re.compile(r"^[0-9a-f]{32}$")
LONGEST: Final = 20_000  # characters of a note


class Note(Record):
    """A note and a flag on one prompt."""

    prompt_id: str = Field(pattern=PROMPT_ID.pattern)
    flag: bool = False
    note: str = Field("", max_length=LONGEST)
    version: str | None = None  # RUN@NUMBER that was looked at
    time: float = 0.0  # Unix time of writing


class Notes:
    """The notes on the prompts of one run."""

    def __init__(self, store: Store, run: str) -> None:
        """Open the notes of `run`. Raises ConfigError if there is no such run."""
        if run not in runs(store):
            raise ConfigError(f"no run is called {run!r} in {store.url}")
        self._storage = store.storage
        self._folder = f"runs/{run}/notes"
        self._read: dict[Entry, Note] = {}

    def all(self) -> dict[str, Note]:
        """Read all notes, by prompt_id, sorted.

        Raises DatasetError if a file is not a note.
        """
        known = {entry: note for entry in self._files() if (note := self._of(entry)) is not None}
        self._read = known
        return {note.prompt_id: note for note in known.values()}

    def write(self, note: Note) -> Note:
        """Write a note with the time of now, or remove an empty one without a flag."""
        written = note.model_copy(update={"time": time.time()})
        name = f"{self._folder}/{note.prompt_id}.json"
        if not note.flag and not note.note.strip():
            self._storage.delete(name)
        else:
            self._storage.write(name, written.model_dump_json().encode())
        return written

    def _files(self) -> Iterator[Entry]:
        return (entry for entry in self._storage.files(self._folder) if _is_note(entry.name))

    def _of(self, entry: Entry) -> Note | None:
        if entry in self._read:
            return self._read[entry]
        try:
            return Note.model_validate_json(self._storage.read(entry.name))
        except FileNotFoundError:  # removed meanwhile
            return None
        except (OSError, ValidationError) as error:
            raise DatasetError(
                f"{self._storage.url}/{entry.name} is not a note ({first_line(error)}): remove it"
            ) from error


def _is_note(name: str) -> bool:
    name = name.rpartition("/")[2]
    return name.endswith(".json") and bool(PROMPT_ID.fullmatch(name.removesuffix(".json")))
