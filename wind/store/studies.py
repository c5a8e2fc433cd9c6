"""Studies: the latest results of `wind compare`, `wind sweep` and `wind bandit`.

No dataset version names these results. A study's record, `<root>/runs/<run>/study.json`, names its
datasets by their nouns. Garbage collection keeps them and everything they were computed from. The
next study of that name replaces the record.
"""

from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from wind.errors import DatasetError, first_line
from wind.records import Record
from wind.store.datasets import Store
from wind.store.handles import Dataset


class Study(Record):
    """The datasets that a study computed."""

    run: str
    datasets: dict[str, Dataset]


def record(store: Store, run: str, datasets: Mapping[str, Dataset]) -> None:
    """Record `datasets` as the results of a study, replacing earlier ones."""
    content = Study(run=run, datasets=dict(datasets)).model_dump_json(indent=1)
    store.storage.write(_name(run), content.encode())


def studies(store: Store) -> Iterator[Study]:
    """Yield the studies in order of name.

    Raises DatasetError if a record cannot be read.
    """
    for run in store.storage.names("runs"):
        try:
            yield Study.model_validate_json(store.storage.read(_name(run)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValidationError) as error:
            problem = first_line(error)
            raise DatasetError(
                f"{store.url}/{_name(run)} is not a study ({problem}): run the study again"
            ) from error


def forget(store: Store, run: str) -> None:
    """Remove the record of the study `run`, if there is one.

    The next collection frees its data.
    """
    store.storage.delete(_name(run))


def _name(run: str) -> str:
    return f"runs/{run}/study.json"
