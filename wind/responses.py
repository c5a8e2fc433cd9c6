"""Responses: stored answers to the held-out prompts, of whatever origin.

One row is one response that was read from a file and belongs to a held-out prompt. A row of the
file names its prompt by `prompt_id`, or by what was asked: the text of the prompt, as `prompt` or
`instruction`, or its messages. The answer is its `response` or, as AlpacaEval writes it, `output`.
A prompt may have several. Answers to other prompts are left out and counted; a held-out prompt
without an answer is an error.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl
import pyarrow as pa

from wind.errors import ConfigError, InputError, shown
from wind.files import NotPlainError
from wind.prompts.rows import READERS, Row
from wind.redaction import without_home
from wind.stages import (
    Place,
    Progress,
    Role,
    Shard,
    Spec,
    Stage,
    light,
    no_function,
    one_side,
    unforeseen,
)
from wind.store.datasets import Store
from wind.store.handles import Dataset, Source
from wind.store.imports import import_source
from wind.store.provenance import provenance
from wind.store.schemas import (
    PROMPT,
    PROMPT_ID,
    SAMPLE,
    SAMPLE_INDEX,
    Column,
    Declaration,
    ForeignKey,
)

DATASET = Declaration(
    row="one stored response to a held-out prompt",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("response", pa.string(), "text, as the file has it"),
    ),
    key=SAMPLE,
    foreign_keys=(ForeignKey(PROMPT, "prompts"),),
)

ASKED: Final = ("prompt_id", "prompt", "instruction")
ANSWERED: Final = ("response", "output")


class ResponsesSpec(Spec):
    """The stored files, and the prompts whose held-out split they answer."""

    source: Source
    prompts: Dataset
    split: Literal["eval"] = "eval"


def import_responses(store: Store, setting: str, path: str) -> Source:
    """Copy the file of responses that `setting` names into the store.

    Raises ConfigError if there is no such file, or if it is of another kind.
    """
    started, file = time.time(), Path(path).expanduser()
    kinds = ", ".join(READERS)
    if file.suffix not in READERS:
        raise ConfigError(f"{setting} {path} is none of {kinds}: give such a file")
    if not file.is_file():
        raise ConfigError(f"{setting} {file.absolute()} does not exist: give a file of {kinds}")
    origin = {"path": without_home(path)}
    try:
        return import_source(
            store, [file], provenance={"origin": origin, **provenance(store, started)}
        )
    except NotPlainError as error:
        raise ConfigError(f"{setting} {error}") from error
    except PermissionError as error:
        raise ConfigError(f"{setting} {path} may not be read: check its permissions") from error


def responses_of(rows: Iterator[Row], prompts: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the responses to `prompts`, sorted by key, and the number of other rows.

    `prompts` are the held-out ones: prompt_id, prompt, messages. Samples are numbered in the order
    of the file. Raises InputError, naming the row, for one that names no prompt or has no response,
    and for prompts without one.
    """
    names = _names(prompts)
    counts: Counter[str] = Counter()
    found: list[tuple[str, int, str]] = []
    others = 0
    for row in rows:
        prompt_ids = names.get(_asked(row), set())
        response = _answer(row)
        if len(prompt_ids) > 1:
            raise InputError(
                f"{row.where} answers what {len(prompt_ids)} prompts ask: name one by its prompt_id"
            )
        if not prompt_ids:
            others += 1
        for prompt_id in prompt_ids:
            found.append((prompt_id, counts[prompt_id], response))
            counts[prompt_id] += 1
    missing = prompts.filter(~pl.col("prompt_id").is_in([*counts]))
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(prompts)} held-out prompts have no stored response, the first "
            f"is prompt {missing['prompt_id'][0]}, {shown(missing['prompt'][0])}: "
            "add responses to them"
        )
    schema = {"prompt_id": pl.String, "sample_index": pl.Int32, "response": pl.String}
    return pl.DataFrame(found, schema=schema, orient="row").sort(SAMPLE), others


def _names(prompts: pl.DataFrame) -> dict[str, set[str]]:
    """Map everything that a row may call a prompt to the ids that it may mean.

    That is the id, the rendered text, the messages as JSON, and of a single message its text.
    """
    names: dict[str, set[str]] = {}
    for prompt_id, prompt, messages in prompts.iter_rows():
        users = [turn["content"] for turn in messages if turn["role"] == "user"]
        for name in {prompt_id, prompt, _as_json(messages), *(users if len(users) == 1 else ())}:
            names.setdefault(name, set()).add(prompt_id)
    return names


def _asked(row: Row) -> str:
    """Return the name of the prompt that `row` answers, as `_names` has it."""
    value = _field(row, ASKED)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return _as_json([{name: turn.get(name) for name in ("role", "content")} for turn in value])
    raise InputError(f"{row.where} has {shown(value)} as its prompt: a text or messages are needed")


def _answer(row: Row) -> str:
    value = _field(row, ANSWERED)
    if not isinstance(value, str):
        raise InputError(f"{row.where} has {shown(value)} as its response: a text is needed")
    return value


def _field(row: Row, names: tuple[str, ...]) -> Any:
    """Return the first of the fields `names` that `row` has."""
    for name in names:
        if row.fields.get(name) is not None:
            return row.fields[name]
    has = ", ".join(map(str, row.fields)) or "nothing"
    raise InputError(f"{row.where} has no {' or '.join(names)}: it has {has}")


def _as_json(messages: list[dict[str, Any]]) -> str:
    return json.dumps(messages, ensure_ascii=False, sort_keys=True)


def _compute(
    spec: ResponsesSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    columns = ["prompt_id", "prompt", "messages"]
    prompts = store.frame(spec.prompts, [*columns, "split"]).filter(split=spec.split)
    names = sorted(file.name for file in store.manifest(spec.source).files)
    folder = store.path(spec.source)
    rows = (row for name in names for row in READERS[Path(name).suffix](folder / name))
    found, others = responses_of(rows, prompts.select(columns))
    progress(len(found), len(found))
    numbers = {"source_rows": len(found) + others, "other_prompts": others}
    return Shard(found.to_arrow(), numbers=numbers)


STAGE: Final[Stage[ResponsesSpec]] = Stage(
    name="responses",
    spec=ResponsesSpec,
    dataset=DATASET,
    dropped=None,
    shards=lambda spec, store: 1,
    compute=_compute,
    numbers=lambda spec, table: {},
    worker=light,
    role=Role(
        phase="evaluation",
        sides=("",),
        side=one_side,
        history=(),
        is_timed=False,
        has_drift=False,
        expected=unforeseen,
        related_parents={},
        function_seconds=no_function,
    ),
)
