"""Gold answers: the table of texts, and which responses equal them."""

import datetime
from decimal import Decimal
from typing import Any

import pytest

from wind.answers import canonical, is_same


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("72.0 ", "72.0 "),  # a text is as it is
        ("", ""),
        (72, "72"),
        (-3, "-3"),
        (10**30, "1" + "0" * 30),
        (72.0, "72"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (-2.50, "-2.5"),
        (2.0**53, "9007199254740992.0"),  # from here on a float may stand for several integers
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (Decimal("72.00"), "72"),
        (Decimal("100"), "100"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.50"), "0.5"),
        (True, "true"),
        (False, "false"),
        (datetime.date(2024, 7, 26), "2024-07-26"),
        (datetime.datetime(2024, 7, 26, 9, 5), "2024-07-26T09:05:00"),
        (datetime.time(9, 5), "09:05:00"),
        (datetime.timedelta(hours=1, minutes=30), "1:30:00"),
        (["4", 4.0, None, True, float("nan")], '["4", 4, null, true, null]'),
        (
            {"b": Decimal("1.50"), "a": datetime.date(2024, 7, 26), "é": 2.5},
            '{"a": "2024-07-26", "b": "1.5", "é": 2.5}',
        ),
        ([], "[]"),
        (None, None),
        (float("nan"), None),
    ],
)
def test_every_value_has_one_text(value: Any, text: str | None) -> None:
    assert canonical(value) == text


def test_bytes_have_no_text() -> None:
    with pytest.raises(TypeError, match="bytes is no answer"):
        canonical([b"4"])


@pytest.mark.parametrize(
    ("response", "answer", "same"),
    [
        ("72", "72", True),
        (" 72\n", "72.0", True),
        ("72.", "72", True),
        (".5", "0.50", True),
        ("+7", "7", True),
        ("-7", "7", False),
        ("1e3", "1000", True),
        ("072", "72", True),
        ("0.1", "0.10000000000000001", False),  # exact, unlike floats
        ("9007199254740993", "9007199254740992", False),
        ("1,000", "1000", False),  # a text: elsewhere it is 1
        ("72 apples", "72", False),
        ("7 2", "72", False),
        ("٧", "7", False),
        ("1e99999", "1e99999", True),
        ("1e99999", "2e99999", False),
        (".", "0", False),
        ("true", "True", False),
        ("", "", True),
        ("", "0", False),
    ],
)
def test_numbers_are_compared_as_numbers(response: str, answer: str, same: bool) -> None:
    assert is_same(response, answer) is same
    assert is_same(answer, response) is same
