"""Prompt history: the responses to one prompt, iteration by iteration.

Each response comes with everything recorded about it: its reward, win rate, rank and
log-probabilities.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.audit.lineage import chain, named
from wind.errors import ConfigError, DatasetError, first_line
from wind.records import Record
from wind.stages import roles
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.references import find_version
from wind.store.versions import Version, runs

# columns that repeat what the iteration, or the text of the response, already says
REDUNDANT = ("prompt_id", "policy", "seed", "response_token_ids")
# columns of the evaluation under the names that other datasets use for training responses
OF_POLICY = {
    "response_tokens_policy": "response_tokens",
    "accuracy_policy": "accuracy",
}


class Answers(Record):
    """The responses to a prompt in one iteration."""

    version: str  # RUN@NUMBER
    iteration: int
    # fingerprint of the model that gave them; on policy, of the one the iteration started from
    policy: str
    rows: list[dict[str, Any]]  # best first; empty if the iteration did not sample the prompt
    damage: list[str] = []  # what could not be read


class History(Record):
    """A prompt and its responses over the iterations of a run."""

    run: str
    prompt_id: str
    prompt: str
    split: str
    answer: str | None
    meta: str
    iterations: list[Answers]


def find_prompt(store: Store, digits: str, run: str | None = None) -> tuple[list[Version], str]:
    """Find the prompt whose id begins with `digits`.

    Returns the latest version of each run that has the prompt, or of `run` alone, and the whole id.
    Raises ConfigError if no prompt, or more than one, has such an id.
    """
    if run is not None and run not in runs(store):
        raise ConfigError(
            f"no run is called {run!r} in {store.storage.url} "
            f"(runs: {', '.join(runs(store)) or 'none'})"
        )
    found: dict[str, list[Version]] = {}
    asked: dict[Dataset, list[str]] = {}
    for version in [find_version(store, name) for name in ([run] if run else runs(store))]:
        prompts = version.content.datasets["prompts"]
        if prompts not in asked:
            asked[prompts] = _beginning(store, prompts, digits)
        for prompt_id in asked[prompts]:
            found.setdefault(prompt_id, []).append(version)
    if not found:
        where = f"run {run}" if run else "any run"
        raise ConfigError(
            f"no prompt of {where} has an id that begins with {digits!r}: "
            "`wind rows RUN:prompts` shows ids"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} prompts have an id that begins with {digits!r}: give more digits"
        )
    ((prompt_id, versions),) = found.items()
    return versions, prompt_id


def history(store: Store, version: Version, prompt_id: str) -> History:
    """Collect the responses to a prompt, up to the iteration of `version`."""
    prompts = version.content.datasets["prompts"]
    (prompt,) = _rows(store, prompts, prompt_id).to_dicts()
    iterations = [
        _answers(store, each, prompt_id, prompt["split"]) for each in chain(store, version)
    ]
    told = {name: prompt[name] for name in ("prompt_id", "prompt", "split", "answer", "meta")}
    return History(run=version.run, **told, iterations=iterations)


def _answers(store: Store, version: Version, prompt_id: str, split: str) -> Answers:
    datasets = named(store, version)
    content = version.content
    damage: list[str] = []
    if split == "eval":
        rows = _joined(store, _told(datasets, "eval"), prompt_id, damage)
        rows = rows.rename(OF_POLICY, strict=False)
        rows = _beside_reference(
            store, rows, datasets.get("reference_generations"), prompt_id, damage
        )
    else:
        rows = _joined(store, _told(datasets, "train"), prompt_id, damage)
    best_first = [name for name in ("step", "drawn_from", "rank") if name in rows.columns]
    descending = [name == "drawn_from" for name in best_first]  # policy before anchor
    if best_first and "rank" in rows.columns:
        rows = rows.sort(*best_first, descending=descending, maintain_order=True)
    elif "reward" in rows.columns:
        rows = rows.sort("reward", descending=True, maintain_order=True)
    return Answers(
        version=f"{version.run}@{version.number}",
        iteration=content.iteration,
        policy=(content.model_out if split == "eval" else content.model_in).fingerprint,
        rows=rows.drop([name for name in REDUNDANT if name in rows.columns]).to_dicts(),
        damage=damage,
    )


def _told(datasets: Mapping[str, Dataset], split: Literal["train", "eval"]) -> list[Dataset]:
    """Return the datasets about responses to the prompts of `split`.

    They are taken from `datasets`, those of a version. For held-out prompts they are the policy's
    side of the evaluation.
    """
    names = [
        f"eval_{noun}" if split == "eval" and "eval_" in role.sides else noun
        for noun, role in roles().items()
        if split in role.history
    ]
    return [datasets[name] for name in names if name in datasets]


def _joined(
    store: Store, handles: Sequence[Dataset], prompt_id: str, damage: list[str]
) -> pl.DataFrame:
    """Join the rows of the prompt in all `handles`, by sample.

    A dataset that cannot be read is left out, and the reason appended to `damage`.
    """
    joined: pl.DataFrame | None = None
    for handle in handles:
        try:
            rows = _rows(store, handle, prompt_id)
        except DatasetError as error:
            damage.append(str(error))
            continue
        if joined is None:
            joined = rows
        else:
            new = [name for name in rows.columns if name not in joined.columns]
            key = ["prompt_id", "sample_index"]
            joined = joined.join(
                rows.select(*key, *new), on=key, how="full", coalesce=True, maintain_order="left"
            )
    return pl.DataFrame() if joined is None else joined


def _beside_reference(
    store: Store, rows: pl.DataFrame, reference: Dataset | None, prompt_id: str, damage: list[str]
) -> pl.DataFrame:
    """Add the response of the reference that each was compared with."""
    if reference is None or rows.is_empty():
        return rows
    theirs = _joined(store, [reference], prompt_id, damage)
    if theirs.is_empty():
        return rows
    theirs = theirs.select("sample_index", response_reference="response")
    return rows.join(theirs, on="sample_index", how="left", maintain_order="left")


def _rows(store: Store, handle: Dataset, prompt_id: str) -> pl.DataFrame:
    return _read(store, handle, pc.field("prompt_id") == prompt_id)


def _beginning(store: Store, prompts: Dataset, digits: str) -> list[str]:
    """List the ids in `prompts` that begin with `digits`.

    Empty if the dataset cannot be read.
    """
    try:
        rows = _read(
            store, prompts, pc.starts_with(pc.field("prompt_id"), pattern=digits), ["prompt_id"]
        )
    except DatasetError:
        return []
    return rows["prompt_id"].to_list()


def _read(
    store: Store, handle: Dataset, condition: Any, columns: list[str] | None = None
) -> pl.DataFrame:
    """Read the rows that meet a condition; no others come into memory.

    Raises DatasetError if a shard cannot be read.
    """
    try:
        frame = pl.from_arrow(store.open(handle).to_table(columns=columns, filter=condition))
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(
            f"{label(handle)} cannot be read: {first_line(error)}; run `wind verify`"
        ) from error
    assert isinstance(frame, pl.DataFrame)
    return frame
