"""Limit how deep JSON and YAML may be nested, by counting.

The state of the process must not decide what can be read. Python's recursion limit is such a state:
libraries raise it when they are imported, and what is left of it depends on the caller. Parquet and
Arrow files have counted limits of their own.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

# levels; a chat with tool schemas has about ten
DEEPEST: Final = 64

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[{]|[\]}]")


def json_value(content: bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse a JSON text in UTF-8.

    Raises ValueError (JSONDecodeError, UnicodeDecodeError) for any other text, and for one nested
    more than `DEEPEST` levels.
    """
    text = content.decode()
    if is_too_deep(text):
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    return json.loads(text, parse_constant=parse_constant)


def is_too_deep(text: str) -> bool:
    """Return True if brackets are nested more than `DEEPEST` levels.

    Ignores those within the strings of the JSON text.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            return True
    return False
