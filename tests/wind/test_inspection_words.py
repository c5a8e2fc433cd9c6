"""Word differences: their parts put both texts together again."""

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from wind.inspection.words import difference, lengths


def test_by_hand() -> None:
    assert difference("the cat sat.", "the dog sat!") == [
        ("=", "the "),
        ("-", "cat"),
        ("+", "dog"),
        ("=", " sat"),
        ("-", "."),
        ("+", "!"),
    ]
    assert difference("", "") == []
    assert difference("a", "") == [("-", "a")]
    assert difference("", "a b") == [("+", "a b")]
    assert difference("a b", "a b") == [("=", "a b")]


def test_a_page_counts_in_utf_16() -> None:
    assert lengths(difference("x 😀", "x y")) == [("=", 2), ("-", 2), ("+", 1)]


@given(st.text("ab .\n"), st.text("ab .\n"))
def test_the_parts_are_both_texts(before: str, after: str) -> None:
    parts = difference(before, after)
    assert "".join(text for sign, text in parts if sign != "+") == before
    assert "".join(text for sign, text in parts if sign != "-") == after


def test_a_megabyte_on_one_line_takes_no_time() -> None:
    words = random.choices(["lorem", "ipsum", "dolor"], k=180_000)
    before, after = " ".join(words), " ".join([*words[:9], "x", *words[::-1]])
    begun = time.process_time()
    parts = difference(before, after)
    assert "".join(text for sign, text in parts if sign != "-") == after
    assert time.process_time() - begun < 5
