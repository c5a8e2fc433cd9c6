"""Seals: a JSON record carries the sha256 of its own content, so that an edit of any of its fields
shows.

The digest is over the fields as they were written, not over what today's code makes of them: a
record of an older release, with fewer fields, keeps its seal.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from wind.errors import DatasetError, first_line
from wind.fingerprints import digest

DIGEST = "digest"
SHA256 = re.compile(r"[0-9a-f]{64}")


def encode(record: BaseModel | Mapping[str, Any]) -> bytes:
    """`record` as JSON text whose last field is the digest of all others.

    The text is read back by whatever will read it later, so that nothing is published that cannot
    be. Raises DatasetError naming the first number that is not finite, which JSON cannot hold.
    """
    fields = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    for name, number in _numbers(fields):
        if not math.isfinite(number):
            raise DatasetError(
                f"{name.removeprefix('.')} is {number}, which no record can hold: nothing was published"
            )
    content = {name: value for name, value in fields.items() if name != DIGEST}
    text = _text(content | {DIGEST: digest(content)})
    written = read(text)
    if isinstance(record, BaseModel):
        type(record).model_validate(written)
    return text


def read(text: bytes) -> dict[str, Any]:
    """The fields of a record whose seal holds, or that never had one. Raises ValueError saying why
    it is not as written.
    """
    record = read_unsealed(text)
    if DIGEST in record:
        if (
            digest({name: value for name, value in record.items() if name != DIGEST})
            != record[DIGEST]
        ):
            raise ValueError("does not have the digest that it carries: it was edited")
        if _text(record) != text:
            raise ValueError("is not written as it was sealed: it was edited")
    elif record and SHA256.fullmatch(str([*record.values()][-1])):
        # no record without a seal ends so
        raise ValueError("calls its digest something else: it was edited")
    return record


def read_unsealed(text: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Raises ValueError for anything else, however it is broken."""
    try:
        record = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot be read ({first_line(error)})") from error
    if not isinstance(record, dict):
        raise ValueError("cannot be read (it is no JSON object)")
    return record


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every float in `value`, with the names that lead to it."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _numbers(item, f"{name}[{position}]")


def _text(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode()
