"""Notes beside a run: written whole, the last one wins, and several processes may write."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.wind.reading_case import PROMPTS, make_versions
from wind.audit.verification import Verification
from wind.errors import ConfigError, DatasetError
from wind.inspection.notes import LONGEST, Note, Notes
from wind.store.datasets import Store
from wind.store.garbage import collect

WRITER = """
import sys
from wind.inspection.notes import Note, Notes
from wind.store.datasets import Store
notes = Notes(Store(sys.argv[1]), "demo")
for number in range(50):
    notes.write(Note(prompt_id=sys.argv[2], note=f"{sys.argv[3]} {number}"))
    notes.all()
"""


def verified(store: Store) -> object:
    """What verifying all of a store reports."""
    verification = Verification(store)
    verification.everything()
    return verification.report()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_versions(store, tmp_path / "outside")
    return store


def test_the_last_note_on_a_prompt_is_kept(store: Store) -> None:
    notes = Notes(store, "demo")
    assert notes.all() == {}
    notes.write(Note(prompt_id=PROMPTS[1], note="b", version="demo@1"))
    notes.write(Note(prompt_id=PROMPTS[0], flag=True))
    written = notes.write(Note(prompt_id=PROMPTS[1], note="b again"))
    found = Notes(store, "demo").all()
    assert list(found) == PROMPTS[:2]
    assert found[PROMPTS[1]] == written
    assert (found[PROMPTS[0]].flag, found[PROMPTS[0]].note) == (True, "")
    assert notes.all() == found


def test_an_empty_note_without_a_flag_is_removed(store: Store) -> None:
    notes = Notes(store, "demo")
    notes.write(Note(prompt_id=PROMPTS[0], note="x"))
    notes.write(Note(prompt_id=PROMPTS[0], note=" \n"))
    assert notes.all() == {}
    assert list(store.storage.files("runs/demo/notes")) == []


def test_two_processes_write_at_once(store: Store, tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, root, prompt, name])
        for prompt, name in ((PROMPTS[0], "one"), (PROMPTS[0], "two"), (PROMPTS[1], "three"))
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = Notes(store, "demo").all()
    assert found[PROMPTS[0]].note in ("one 49", "two 49")
    assert found[PROMPTS[1]].note == "three 49"


def test_what_is_no_note_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="no run is called 'other'"):
        Notes(store, "other")
    for prompt_id in ("../../x", "A" * 32, "a" * 33, "a" * 31 + "\n"):
        with pytest.raises(ValidationError):
            Note(prompt_id=prompt_id)
    with pytest.raises(ValidationError):
        Note(prompt_id=PROMPTS[0], note="x" * (LONGEST + 1))
    store.storage.write(f"runs/demo/notes/{PROMPTS[0]}.json", b"{}")
    with pytest.raises(DatasetError, match=r"runs/demo/notes/a+\.json is not a note \(.*: remove"):
        Notes(store, "demo").all()


def test_notes_are_in_no_dataset_and_in_nobodys_way(store: Store) -> None:
    before = verified(store)
    Notes(store, "demo").write(Note(prompt_id=PROMPTS[0], note="x"))
    store.storage.write(f"runs/demo/notes/{PROMPTS[0]}.json.abc", b"unfinished")
    assert list(Notes(store, "demo").all()) == [PROMPTS[0]]
    assert verified(store) == before
    collect(store)
    assert list(Notes(store, "demo").all()) == [PROMPTS[0]]
