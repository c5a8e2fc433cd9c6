"""Seals: a JSON record carries the sha256 of its own content, so that an edit of any of its fields shows.

The digest is over the fields as they were written, not over what today's code makes of them: a record of an older release, with
fewer fields, keeps its seal.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from wind.errors import first_line
from wind.fingerprints import digest

DIGEST = "digest"
SHA256 = re.compile(r"[0-9a-f]{64}")


def seal(record: BaseModel | Mapping[str, Any]) -> bytes:
    """`record` as JSON text whose last field is the digest of all others."""
    fields = json.loads(record.model_dump_json()) if isinstance(record, BaseModel) else record
    content = {name: value for name, value in fields.items() if name != DIGEST}
    return _text(content | {DIGEST: digest(content)})


def opened(text: bytes) -> dict[str, Any]:
    """The fields of a record whose seal holds, or that never had one. Raises ValueError saying why it is not as written."""
    record = parsed(text)
    if DIGEST in record:
        if digest({name: value for name, value in record.items() if name != DIGEST}) != record[DIGEST]:
            raise ValueError("does not have the digest that it carries: it was edited")
        if _text(record) != text:
            raise ValueError("is not written as it was sealed: it was edited")
    elif record and SHA256.fullmatch(str([*record.values()][-1])):  # no record without a seal ends so
        raise ValueError("calls its digest something else: it was edited")
    return record


def parsed(text: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Raises ValueError for anything else, however it is broken."""
    try:
        record = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot be read ({first_line(error)})") from error
    if not isinstance(record, dict):
        raise ValueError("cannot be read (it is no JSON object)")
    return record


def _text(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode()
