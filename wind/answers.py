"""Gold answers: their text, and when a response equals one.

| value | text |
|---|---|
| text | the text itself |
| integer; float or decimal without a fraction | its digits: 72, 72.0 and a decimal 72.00 are `72` |
| other float, other decimal | the shortest decimal notation: `0.5`, `1e+300` |
| true, false | `true`, `false` |
| date, time, timestamp | ISO 8601: `2024-07-26`, `2024-07-26T00:00:00` |
| duration | as Python writes it: `1:30:00` |
| list, object | JSON with sorted keys, its contents likewise: `["4", 4, true]` |
| null, not a number | no answer |

An integer column with one missing value arrives as floats, which is why 72.0 has the text of 72.
"""

import datetime
import decimal
import json
import math
import re
from typing import Any, Final

NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$"
EXACT: Final = 2**53  # floats below it have digits of their own


def canonical(value: Any) -> str | None:
    """Return the text of an answer, None for a missing one.

    Raises TypeError for a value that has none, such as bytes.
    """
    if value is None or is_nan(value):
        return None
    return value if isinstance(value, str) else _text(value)


def is_nan(value: Any) -> bool:
    """Return True for a float that is not a number.

    That is how a column of floats marks a missing value.
    """
    return isinstance(value, float) and math.isnan(value)


def is_same(response: str, answer: str) -> bool:
    """Return True if both are the same text, or equal numbers.

    White space around them is ignored. A number is digits with a sign, a decimal point and an
    exponent, all but the digits optional; 1,000 is a text.
    """
    response, answer = response.strip(), answer.strip()
    if response == answer:
        return True
    both_numbers = re.match(NUMBER, response) and re.match(NUMBER, answer)
    return bool(both_numbers) and decimal.Decimal(response) == decimal.Decimal(answer)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(_json(value), sort_keys=True, ensure_ascii=False)
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if abs(value) < EXACT and value.is_integer() else repr(value)
    if isinstance(value, decimal.Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise TypeError(f"{type(value).__name__} is no answer")


def _json(value: Any) -> Any:
    """Return `value` as JSON can hold it.

    Numbers are as above, null stands for those that are not finite, and all else is its text.
    """
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return (
            None
            if not math.isfinite(value)
            else int(value)
            if abs(value) < EXACT and value.is_integer()
            else value
        )
    return value if value is None or isinstance(value, str | bool | int) else _text(value)
