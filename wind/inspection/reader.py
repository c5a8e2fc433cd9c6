"""The reader of a store: what the page, its bundle and the terminal show, from one place.

reader = Reader(Store("store"))
version = find_version(reader.store, "demo@3")
page = reader.answer(version, Query(where="reward_gain > 0.2", sort="-disagreement"))
detail = reader.detail(version, page.rows["prompt_id"][0])
steps = reader.over_iterations(version, detail.prompt_id, sample_index=0)
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, TypeVar

import polars as pl

from wind.audit.lineage import chain, named
from wind.errors import ConfigError, DatasetError
from wind.inspection.detail import Detail, Response, detail, responses, token_ids
from wind.inspection.fields import FIELDS
from wind.inspection.index import index_of, prompts_of
from wind.inspection.notes import Note, Notes
from wind.inspection.query import Page, Query, answer
from wind.inspection.slices import Slices
from wind.inspection.tokens import Stretch, load_tokenizer, stretches
from wind.inspection.words import Part, difference
from wind.records import Record
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.references import find_version
from wind.store.versions import Version

# Counts the expectations of data checks that name a row of each prompt, by prompt_id.
Failures = Callable[[Store, Version], Mapping[str, int]]
# How many of the large things are kept in memory, each.
LARGE: Final = ("frame", "prompts", "tokenizer")
MOST: Final = 8

T = TypeVar("T")


class Step(Record):
    """One sample of a prompt in one iteration."""

    version: str  # RUN@NUMBER
    iteration: int
    response: Response | None  # None if the iteration has no such sample
    # from the response of the last iteration before that has one; empty for the first
    difference: list[Part] = []
    damage: list[str] = []


def no_failures(store: Store, version: Version) -> Mapping[str, int]:
    """Return that no row is named by a check."""
    return {}


class Reader:
    """Reads prompts and responses of a store. Threads may share it.

    Args:
        failures: counts failed expectations by prompt; only `data_checks` knows.
    """

    def __init__(self, store: Store, failures: Failures = no_failures) -> None:
        self.store = store
        self._failures = failures
        self._slices = Slices(store)
        self._kept: OrderedDict[tuple[str, Hashable], Any] = OrderedDict()
        # What the last frame of a version was made with, and the frame.
        self._beside: dict[tuple[str, int], tuple[dict[str, Note], pl.DataFrame]] = {}
        self._turn = threading.RLock()

    def frame(self, version: Version) -> pl.DataFrame:
        """Return a row for each prompt of `version` with a column for each field, sorted by id.

        What readers say is as it is now; the rest is computed once.
        """
        notes = self.notes(version.run).all()
        key = (version.run, version.number)
        with self._turn:
            known = self._beside.get(key)
            if known is None or known[0] != notes:
                fixed = self._once(("frame", version.id), lambda: self._fixed(version))
                failures = self._once(
                    ("failures", key), lambda: self._failures(self.store, version)
                )
                known = self._beside[key] = (notes, _with_beside(fixed, notes, failures))
                if len(self._beside) > MOST:
                    del self._beside[next(iter(self._beside))]
            return known[1]

    def answer(self, version: Version, query: Query) -> Page:
        """Return the prompts of `version` that `query` asks for.

        Raises ConfigError for a query that is none.
        """
        return answer(self.frame(version), query)

    def detail(self, version: Version, prompt_id: str) -> Detail:
        """Read everything about a prompt in `version`, see `wind.inspection.detail`."""
        return detail(version, self._named(version), prompt_id, self._slices)

    def over_iterations(self, version: Version, prompt_id: str, sample_index: int) -> list[Step]:
        """Follow one sample of a prompt over the iterations up to `version`.

        On policy it is the first response with that index of each iteration. Raises ConfigError if
        the version has no such prompt.
        """
        split = self._split(version, prompt_id)
        steps: list[Step] = []
        before: str | None = None
        for each in self.chain(version):
            damage: list[str] = []
            datasets = self._named(each)
            found = responses(self._slices, datasets, prompt_id, split, damage)
            response = next((one for one in found if one.sample_index == sample_index), None)
            parts: list[Part] = []
            if response is not None:
                parts = [] if before is None else difference(before, response.response)
                before = response.response
            steps.append(
                Step(
                    version=f"{each.run}@{each.number}",
                    iteration=each.content.iteration,
                    response=response,
                    difference=parts,
                    damage=damage,
                )
            )
        return steps

    def with_special_tokens(
        self, version: Version, prompt_id: str
    ) -> tuple[list[Stretch], list[list[Stretch]]]:
        """Decode a prompt and the policy's responses with their special tokens.

        The responses are in the order of `detail`. Raises ConfigError without a tokenizer.
        """
        model = version.content.model_in
        tokenizer = self._once(("tokenizer", model), lambda: load_tokenizer(self.store, model))
        prompt, found = token_ids(
            self._slices, self._named(version), prompt_id, self._split(version, prompt_id)
        )
        return stretches(tokenizer, prompt), [stretches(tokenizer, ids) for ids in found]

    def chain(self, version: Version) -> list[Version]:
        """Return `version` and the stored versions it continues, the first iteration first."""
        return self._once(("chain", version.id), lambda: chain(self.store, version))

    def notes(self, run: str) -> Notes:
        """Return the notes of a run. Raises ConfigError if there is no such run."""
        return self._once(("notes", run), lambda: Notes(self.store, run))

    def noted(self, run: str) -> list[dict[str, Any]]:
        """Return the notes on a run with the texts of their prompts, by id, to be exported.

        Raises ConfigError if there is no such run.
        """
        found = self.notes(run).all()
        prompts = self._prompts(find_version(self.store, run))
        rows = prompts.filter(pl.col("prompt_id").is_in(list(found)))
        texts = dict(rows.select("prompt_id", "text").iter_rows())
        return [
            {
                "prompt_id": prompt_id,
                "prompt": texts.get(prompt_id),
                **note.model_dump(include={"flag", "note", "version", "time"}),
            }
            for prompt_id, note in found.items()
        ]

    def _prompts(self, version: Version) -> pl.DataFrame:
        handle = version.content.datasets["prompts"]
        return self._once(("prompts", handle), lambda: prompts_of(self.store, version))

    def _fixed(self, version: Version) -> pl.DataFrame:
        prompts = self._prompts(version)
        index = index_of(self.store, self.chain(version), self._slices)
        if not prompts["prompt_id"].equals(index["prompt_id"]):
            raise DatasetError(
                f"the index of {version.run}@{version.number} has other prompts: remove "
                f"{self.store.local}/views, which is computed again"
            )
        return prompts.hstack(index.drop("prompt_id", "rewards"))

    def _split(self, version: Version, prompt_id: str) -> str:
        prompts = version.content.datasets["prompts"]
        rows = self._slices.under(prompts, ["prompt_id"], [prompt_id], ["split"])
        if not len(rows):
            raise ConfigError(f"{version.run}@{version.number} has no prompt {prompt_id!r}")
        return str(rows["split"][0].as_py())

    def _named(self, version: Version) -> dict[str, Dataset]:
        return self._once(("named", version.id), lambda: named(self.store, version))

    def _once(self, key: tuple[str, Hashable], make: Callable[[], T]) -> T:
        """Return what `make` returned for `key`, the least recently used forgotten."""
        with self._turn:
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            found: T = self._kept[key]
            same = [other for other in self._kept if other[0] == key[0]]
            if key[0] in LARGE and len(same) > MOST:
                del self._kept[same[0]]
            return found


def _with_beside(
    fixed: pl.DataFrame, notes: Mapping[str, Note], failures: Mapping[str, int]
) -> pl.DataFrame:
    """Add what checks and readers say to the other fields."""
    beside = pl.DataFrame(
        {
            "prompt_id": list(notes),
            "flag": [note.flag for note in notes.values()],
            "note": [note.note or None for note in notes.values()],
        },
        schema={"prompt_id": pl.String, "flag": pl.Boolean, "note": pl.String},
    )
    failed = pl.DataFrame(
        {"prompt_id": list(failures), "check_failures": list(failures.values())},
        schema={"prompt_id": pl.String, "check_failures": pl.Float64},
    )
    return (
        fixed.join(beside, on="prompt_id", how="left", maintain_order="left")
        .join(failed, on="prompt_id", how="left", maintain_order="left")
        .with_columns(pl.col("flag").fill_null(False), pl.col("check_failures").fill_null(0))
        .select(*FIELDS)
    )
