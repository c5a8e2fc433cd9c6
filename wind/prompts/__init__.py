"""Prompts: rows of a source, rendered, tokenized, deduplicated, and split once into train and eval.

A prompt is named by the hash of its rendered text and its split is drawn from that name, so neither depends on the order of
the source, and rows that are added later move no prompt from one split to the other. Rows that do not become prompts are the
dataset `prompts.dropped`, each with its reason.
"""

import datetime
import decimal
import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wind.config import PromptsConfig
from wind.datasets import Store
from wind.errors import ConfigError, InputError
from wind.handles import Model, Source
from wind.prompts.sources import Row, import_prompts, read_rows
from wind.schemas import SCHEMAS
from wind.stages import Place, Progress, Shard, Spec, Stage

__all__ = ["STAGE", "PromptsSpec", "import_prompts", "prompts_spec"]


class PromptsSpec(Spec):
    """What determines the prompts."""

    source: Source
    tokenizer: Model  # the model folder whose tokenizer it is
    field: str
    answer_field: str
    template: str  # "chat", "none", or the text of a Jinja template
    eval_fraction: float
    max_prompt_tokens: int
    limit: int | None
    seed: int


def prompts_spec(store: Store, config: PromptsConfig, source: Source, tokenizer: Model, seed: int) -> PromptsSpec:
    """The spec of the prompts of `config`, with the content of a template file in place of its path.

    Raises ConfigError if that file cannot be read.
    """
    template = config.template
    if template not in ("chat", "none"):
        try:
            template = Path(config.template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f'prompts.template {config.template} cannot be read ({error}): give "chat", "none" or the path of a Jinja file'
            ) from error
    return PromptsSpec(
        source=source,
        tokenizer=tokenizer,
        field=config.field,
        answer_field=config.answer_field,
        template=template,
        eval_fraction=config.eval_fraction,
        max_prompt_tokens=config.max_prompt_tokens,
        limit=config.limit,
        seed=seed,
    )


def prompt_id_of(text: str) -> str:
    """The first 32 hex digits of the sha256 of a rendered prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def split_of(prompt_id: str, seed: int, eval_fraction: float) -> str:
    """`eval` for a share `eval_fraction` of all ids, `train` for the others; a function of the id and the seed alone."""
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()[:8]) / 2**64
    return "eval" if draw < eval_fraction else "train"


def compute(spec: PromptsSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    """The prompts of the source, sorted by prompt_id, and the rows that were dropped, by their position in the source.

    A row longer than `max_prompt_tokens` is dropped as `too_long`; of the others with the same rendered prompt the first is kept,
    with its answer, and the rest are dropped as `duplicate`. Raises InputError or ConfigError naming what cannot be used.
    """
    from wind.prompts.rendering import load_tokenizer, messages_of, render

    rows = read_rows(store, spec.source, spec.field, spec.limit)
    messages = [messages_of(row, spec.field, spec.template) for row in rows]
    kept: dict[str, dict[str, Any]] = {}
    dropped: list[dict[str, Any]] = []
    conflicting = 0
    tokenizer = load_tokenizer(store.path(spec.tokenizer))
    for position, (text, ids) in enumerate(render(tokenizer, spec.template, rows, messages)):
        prompt_id = prompt_id_of(text)
        answer = _answer(rows[position].fields.get(spec.answer_field))
        reason = "too_long" if len(ids) > spec.max_prompt_tokens else "duplicate" if prompt_id in kept else None
        if reason:
            dropped.append({"row": position, "prompt_id": prompt_id, "reason": reason, "prompt_tokens": len(ids)})
            conflicting += reason == "duplicate" and answer != kept[prompt_id]["answer"]
        else:
            kept[prompt_id] = {
                "prompt_id": prompt_id,
                "prompt": text,
                "messages": messages[position],
                "prompt_token_ids": ids,
                "split": split_of(prompt_id, spec.seed, spec.eval_fraction),
                "answer": answer,
                "meta": _meta(rows[position], spec, answer),
            }
        if position % 1024 == 0:
            progress(position, len(rows))
    progress(len(rows), len(rows))
    _require_both_splits(spec, kept, dropped)
    return Shard(
        table=pa.Table.from_pylist([kept[prompt_id] for prompt_id in sorted(kept)], schema=SCHEMAS["prompts"]),
        dropped=pa.Table.from_pylist(dropped, schema=SCHEMAS["prompts.dropped"]),
        numbers=_source_numbers(len(rows), Counter(row["reason"] for row in dropped), conflicting),
    )


def numbers(spec: PromptsSpec, table: pa.Table) -> dict[str, float]:
    """Prompts of each split, prompts with a gold answer, and the mean and largest length in tokens."""
    lengths = pc.list_value_length(table.column("prompt_token_ids"))
    return {
        "train": pc.sum(pc.equal(table.column("split"), "train")).as_py(),
        "eval": pc.sum(pc.equal(table.column("split"), "eval")).as_py(),
        "with_answer": table.num_rows - table.column("answer").null_count,
        "mean_prompt_tokens": pc.mean(lengths).as_py(),
        "max_prompt_tokens": pc.max(lengths).as_py(),
    }


def _source_numbers(rows: int, reasons: Counter[str], conflicting: int) -> dict[str, float]:
    """What became of the rows of the source, and duplicates whose answer differs from the one that was kept."""
    return {
        "source_rows": rows,
        "dropped": reasons.total(),
        "dropped_duplicate": reasons["duplicate"],
        "dropped_too_long": reasons["too_long"],
        "conflicting_answers": conflicting,
    }


def _require_both_splits(spec: PromptsSpec, kept: dict[str, dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
    sizes = Counter(prompt["split"] for prompt in kept.values())
    lengths = [row["prompt_tokens"] for row in dropped if row["reason"] == "too_long"]
    if lengths and not kept:
        raise InputError(
            f"every prompt is longer than {spec.max_prompt_tokens} tokens, the shortest has {min(lengths)}: "
            "raise prompts.max_prompt_tokens"
        )
    for split in ("train", "eval"):
        if not sizes[split]:
            raise InputError(
                f"none of {len(kept)} prompts fell into the {split} split: give more prompts, "
                f"or change prompts.eval_fraction ({spec.eval_fraction}) or the seed ({spec.seed})"
            )


def _answer(value: Any) -> str | None:
    """A gold answer as text: a text as it is, a finite number as Python writes it, nothing for anything else."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str | int | float):
        return str(value)
    return None


def _meta(row: Row, spec: PromptsSpec, answer: str | None) -> str:
    """The other fields of `row` as JSON, an answer that is neither text nor number among them."""
    used = {spec.field}
    if answer is not None or row.fields.get(spec.answer_field) is None:
        used.add(spec.answer_field)
    other = {name: value for name, value in row.fields.items() if name not in used}
    try:
        return _json(other)
    except TypeError as error:
        raise InputError(f"{row.where} has a field that JSON cannot hold ({error}): remove that column") from error
    except ValueError:
        return _json(_finite(other))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_text)


def _text(value: Any) -> str:
    """What Parquet and Arrow can hold and JSON cannot, as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _finite(value: Any) -> Any:
    """`value` with null for every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


STAGE = Stage(name="prompts", spec=PromptsSpec, shards=lambda spec, store: 1, compute=compute, numbers=numbers)
