"""Sealed JSON: records with a digest of their fields, so edits show.

The sha256 digest covers the fields as they were written, not as today's code parses them: a record
of an older release, with fewer fields, keeps its seal.
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
    """Encode `record` as JSON that ends in the digest of its fields.

    The result is read back at once, so that nothing unreadable is published. Raises DatasetError
    naming the first number that is not finite, which JSON cannot represent.
    """
    fields = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    for name, number in _numbers(fields):
        if not math.isfinite(number):
            raise DatasetError(
                f"{name.removeprefix('.')} is {number}, which no record can hold: "
                "nothing was published"
            )
    content = {name: value for name, value in fields.items() if name != DIGEST}
    text = _text(content | {DIGEST: digest(content)})
    written = read(text)
    if isinstance(record, BaseModel):
        type(record).model_validate(written)
    return text


def read(text: bytes) -> dict[str, Any]:
    """Read the fields of a record, and check its seal, if any.

    Raises ValueError saying why the record is not as it was written.
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
        # No record without a seal ends in a digest.
        raise ValueError("calls its digest something else: it was edited")
    return record


def read_unsealed(text: bytes) -> dict[str, Any]:
    """Read the fields of a JSON object without checking a seal.

    Raises ValueError for anything that is not a valid JSON object.
    """
    try:
        record = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot be read ({first_line(error)})") from error
    if not isinstance(record, dict):
        raise ValueError("cannot be read (it is no JSON object)")
    return record


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every float in `value` with the path to it."""
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
