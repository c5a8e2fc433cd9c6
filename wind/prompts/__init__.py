"""Prompts: rendered, tokenized and deduplicated rows, split into train and eval.

A prompt is named by the hash of its rendered text, and its split is drawn from that name or from
the value of `group_field`. Neither depends on the order of the source, and rows added later move no
prompt from one split to the other. Rows that do not become prompts form the dataset
`prompts.dropped`, each with its reason.
"""

import datetime
import decimal
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue

from wind.answers import canonical, is_nan
from wind.config.prompts import PromptsConfig
from wind.config.templates import TODAY
from wind.errors import ConfigError, InputError
from wind.files import plain_text
from wind.prompts.messages import conversation_of, plain
from wind.prompts.rows import Row, read_rows
from wind.prompts.sources import import_prompts
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, no_function, one_side, unforeseen
from wind.store.datasets import Store
from wind.store.handles import Model, Source
from wind.store.schemas import MESSAGE, PROMPT, TOKENS, Column, Declaration

__all__ = ["STAGE", "PromptsSpec", "import_prompts", "prompts_spec"]


DATASET = Declaration(
    row="one prompt",
    columns=(
        Column("prompt_id", pa.string(), "32 hex digits: hash of the rendered prompt"),
        Column("prompt", pa.string(), "rendered text, exactly what the token ids spell"),
        Column(
            "messages",
            pa.list_(pa.field("item", MESSAGE, nullable=False)),
            "role and text; a plain string is one user message",
        ),
        Column(
            "prompt_token_ids",
            TOKENS,
            "as the chat template, or for plain text the tokenizer, gives them",
        ),
        Column("split", pa.string(), "train | eval"),
        Column(
            "answer",
            pa.string(),
            "gold answer as `wind.answers` writes it, null where none is known",
            is_nullable=True,
        ),
        Column(
            "meta",
            pa.string(),
            "JSON object: the row's other fields, "
            "and its messages where `messages` does not say all",
        ),
    ),
    key=PROMPT,
    foreign_keys=(),
)
DROPPED = Declaration(
    row="one row of a source that did not become a prompt, and why",
    columns=(
        Column("row", pa.int64(), "0-based position in the source"),
        Column("prompt_id", pa.string(), "of the rendered prompt"),
        Column("reason", pa.string(), "duplicate | too_long"),
        Column("prompt_tokens", pa.int32(), "length of the rendered prompt"),
    ),
    key=("row",),
    foreign_keys=(),
)


class PromptsSpec(Spec):
    """Inputs of the prompts."""

    source: Source
    # model folder that holds the tokenizer
    tokenizer: Model
    field: str
    answer_field: str
    # "chat", "none", or the text of a Jinja template
    template: str
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    date: datetime.date = TODAY
    system: str | None = None
    until: Literal["end", "last_user"] = "end"
    eval_fraction: float
    group_field: str | None = None
    max_prompt_tokens: int
    limit: int | None
    seed: int
    # Whose prompts these are, for another policy to read: the model that holds the tokenizer which
    # names them, and by whose lengths they are dropped. None: `tokenizer` does.
    named_by: Model | None = None
    # of `named_by`, as `template`
    naming_template: str = ""


def prompts_spec(
    store: Store, config: PromptsConfig, source: Source, tokenizer: Model, seed: int
) -> PromptsSpec:
    """Return the spec of the prompts of `config`.

    The path of a template file is replaced with the file's content. Raises ConfigError if that file
    cannot be read.
    """
    return PromptsSpec(
        source=source,
        tokenizer=tokenizer,
        field=config.field,
        answer_field=config.answer_field,
        template=template_text("prompts.template", config.template),
        template_arguments=config.template_arguments,
        date=config.date,
        system=config.system,
        until=config.until,
        eval_fraction=config.eval_fraction,
        group_field=config.group_field,
        max_prompt_tokens=config.max_prompt_tokens,
        limit=config.limit,
        seed=seed,
    )


def read_by(
    spec: PromptsSpec, tokenizer: Model, template: str | None = None, setting: str = ""
) -> PromptsSpec:
    """Return the spec of the same prompts, as another model reads them.

    They keep their names, their split, and their order: only text and token ids are those of
    `tokenizer`. A `template` (None: that of `spec`) may name a file; the error for one that cannot
    be read calls it `setting`.
    """
    if tokenizer == spec.tokenizer and template is None:
        return spec
    text = spec.template if template is None else template_text(setting, template)
    return spec.model_copy(
        update={
            "tokenizer": tokenizer,
            "template": text,
            "named_by": spec.named_by or spec.tokenizer,
            "naming_template": spec.naming_template or spec.template,
        }
    )


def template_text(setting: str, template: str) -> str:
    """Return the text of a Jinja file, or "chat" or "none", which are no files.

    Raises ConfigError if the file cannot be read; `setting` names it.
    """
    if template in ("chat", "none"):
        return template
    try:
        return plain_text(Path(template))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting} {template} cannot be read ({error}): "
            'give "chat", "none" or the path of a Jinja file'
        ) from error


def prompt_id_of(text: str) -> str:
    """Return the first 32 hex digits of a rendered prompt's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def split_of(name: str, seed: int, eval_fraction: float) -> str:
    """Assign `name` to `eval` with probability `eval_fraction`, else to `train`.

    The draw depends only on the name and the seed. The name is a prompt's id, or the value of its
    group.
    """
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) / 2**64
    return "eval" if draw < eval_fraction else "train"


def compute(spec: PromptsSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    """Compute the prompts of the source, sorted by prompt_id.

    The dropped rows are listed by their position in the source. A row longer than
    `max_prompt_tokens` is dropped as `too_long`; of the others with the same rendered prompt, the
    first is kept with its answer, and the rest are dropped as `duplicate`. Prompts that another
    model names are those that it would have; the reader's tokenizer gives them text and token ids.
    Raises InputError or ConfigError naming what cannot be used.
    """
    rows = read_rows(store, spec.source, spec.field, spec.limit)
    conversations = [conversation_of(row, spec) for row in rows]
    kept: dict[str, dict[str, Any]] = {}
    places: dict[str, int] = {}
    dropped: list[dict[str, Any]] = []
    conflicting = 0
    naming = spec.named_by or spec.tokenizer, spec.naming_template or spec.template
    for position, (text, ids) in enumerate(_rendered(spec, store, naming, rows, conversations)):
        prompt = _prompt(spec, rows[position], conversations[position], text, ids)
        prompt_id = prompt["prompt_id"]
        reason = (
            "too_long"
            if len(ids) > spec.max_prompt_tokens
            else "duplicate"
            if prompt_id in kept
            else None
        )
        if reason:
            dropped.append(
                {
                    "row": position,
                    "prompt_id": prompt_id,
                    "reason": reason,
                    "prompt_tokens": len(ids),
                }
            )
            conflicting += reason == "duplicate" and prompt["answer"] != kept[prompt_id]["answer"]
        else:
            kept[prompt_id], places[prompt_id] = prompt, position
        if position % 1024 == 0:
            progress(position, len(rows))
    progress(len(rows), len(rows))
    _require_both_splits(spec, kept, dropped)
    if spec.named_by is not None:
        reading = _rendered(
            spec,
            store,
            (spec.tokenizer, spec.template),
            [rows[place] for place in places.values()],
            [conversations[place] for place in places.values()],
        )
        for prompt, (text, ids) in zip(kept.values(), reading, strict=True):
            prompt.update(prompt=text, prompt_token_ids=ids)
    return Shard(
        table=pa.Table.from_pylist(
            [kept[prompt_id] for prompt_id in sorted(kept)], schema=DATASET.schema
        ),
        dropped=pa.Table.from_pylist(dropped, schema=DROPPED.schema),
        numbers={
            **_source_numbers(len(rows), Counter(row["reason"] for row in dropped), conflicting),
            "nan_answers": sum(is_nan(row.fields.get(spec.answer_field)) for row in rows),
        },
    )


def _rendered(
    spec: PromptsSpec,
    store: Store,
    reader: tuple[Model, str],
    rows: Sequence[Row],
    conversations: Sequence[list[dict[str, Any]]],
) -> Iterator[tuple[str, list[int]]]:
    """Yield text and token ids of the prompts, by a model's tokenizer and a template."""
    from wind.models.pretrained import load_tokenizer
    from wind.models.templates import Template
    from wind.prompts.rendering import render

    tokenizer = load_tokenizer(store.path(reader[0]))
    template = (
        None
        if reader[1] == "none"
        else Template(tokenizer, reader[1], spec.date, spec.template_arguments)
    )
    return render(tokenizer, template, rows, conversations)


def _prompt(
    spec: PromptsSpec, row: Row, conversation: list[dict[str, Any]], text: str, ids: list[int]
) -> dict[str, Any]:
    """Return a row of the dataset.

    Raises InputError, naming the row, if its answer or group cannot be written as text.
    """
    prompt_id, messages = prompt_id_of(text), plain(conversation)
    return {
        "prompt_id": prompt_id,
        "prompt": text,
        "messages": messages,
        "prompt_token_ids": ids,
        "split": split_of(
            prompt_id if spec.group_field is None else _group(row, spec),
            spec.seed,
            spec.eval_fraction,
        ),
        "answer": _answer(row, spec.answer_field),
        "meta": _meta(row, spec, None if conversation == messages else conversation),
    }


def numbers(spec: PromptsSpec, table: pa.Table) -> dict[str, float]:
    """Return sizes of the splits, gold answers, and prompt lengths.

    The lengths are the mean and the maximum in tokens.
    """
    lengths = pc.list_value_length(table.column("prompt_token_ids"))
    return {
        "train": pc.sum(pc.equal(table.column("split"), "train")).as_py(),
        "eval": pc.sum(pc.equal(table.column("split"), "eval")).as_py(),
        "with_answer": table.num_rows - table.column("answer").null_count,
        "mean_prompt_tokens": pc.mean(lengths).as_py(),
        "max_prompt_tokens": pc.max(lengths).as_py(),
    }


def _source_numbers(rows: int, reasons: Counter[str], conflicting: int) -> dict[str, float]:
    """Count the rows of the source by what became of them.

    `conflicting` counts duplicates whose answer differs from the one kept.
    """
    return {
        "source_rows": rows,
        "dropped": reasons.total(),
        "dropped_duplicate": reasons["duplicate"],
        "dropped_too_long": reasons["too_long"],
        "conflicting_answers": conflicting,
    }


def _require_both_splits(
    spec: PromptsSpec, kept: dict[str, dict[str, Any]], dropped: list[dict[str, Any]]
) -> None:
    sizes = Counter(prompt["split"] for prompt in kept.values())
    lengths = [row["prompt_tokens"] for row in dropped if row["reason"] == "too_long"]
    if lengths and not kept:
        raise InputError(
            f"every prompt is longer than {spec.max_prompt_tokens} tokens, the shortest has "
            f"{min(lengths)}: raise prompts.max_prompt_tokens"
        )
    for split in ("train", "eval"):
        if not sizes[split]:
            raise InputError(
                f"none of {len(kept)} prompts fell into the {split} split: give more prompts, "
                f"or change prompts.eval_fraction ({spec.eval_fraction}) or the seed ({spec.seed})"
            )


def _answer(row: Row, field: str) -> str | None:
    """Return the text of a field of `row`.

    Raises InputError, naming the row, if the value has no text form.
    """
    try:
        return canonical(row.fields.get(field))
    except TypeError as error:
        raise InputError(
            f"{row.where} has a {field!r} that cannot be written as text ({error}): "
            "convert that column"
        ) from error


def _group(row: Row, spec: PromptsSpec) -> str:
    """Return the text of the row's group.

    Raises InputError, naming the row, if it has none.
    """
    field = spec.group_field or ""
    if field not in row.fields:
        has = ", ".join(row.fields)
        raise InputError(
            f"{row.where} has no field {field!r}: "
            f"name one of its fields with prompts.group_field ({has})"
        )
    group = _answer(row, field)
    if group is None:
        raise InputError(
            f"{row.where} has no value as {field!r}, the prompts.group_field: "
            "give the row a group of its own"
        )
    return group


def _meta(row: Row, spec: PromptsSpec, conversation: list[dict[str, Any]] | None) -> str:
    """Return the other fields of `row` as JSON.

    The field of its group is among them, and so is `conversation`, under the name of the prompt's
    field. Raises InputError, naming the row, for values that JSON cannot hold.
    """
    used = {spec.field, spec.answer_field} - {spec.group_field}
    other = {name: value for name, value in sorted(row.fields.items()) if name not in used}
    if conversation is not None:
        other[spec.field] = conversation
    try:
        return _json(other)
    except TypeError as error:
        raise InputError(
            f"{row.where} has a field that JSON cannot hold ({error}): remove that column"
        ) from error
    except ValueError:
        return _json(_finite(other))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_text)


def _text(value: Any) -> str:
    """Convert a value of Parquet or Arrow that JSON lacks to text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON lacks, with null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


STAGE: Final[Stage[PromptsSpec]] = Stage(
    name="prompts",
    spec=PromptsSpec,
    dataset=DATASET,
    dropped=DROPPED,
    shards=lambda spec, store: 1,
    compute=compute,
    numbers=numbers,
    worker=lambda spec: "transformers",
    role=Role(
        phase=None,
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
