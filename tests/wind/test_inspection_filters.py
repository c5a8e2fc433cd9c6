"""Filters and queries of prompts: the language, its errors, and what they choose by hand."""

import contextlib
import json
import random
from dataclasses import asdict
from typing import Any

import polars as pl
import pytest

from wind.errors import ConfigError
from wind.inspection.fields import FIELDS
from wind.inspection.filters import AllOf, AnyOf, Comparison, Condition, Not, expression, parse
from wind.inspection.query import Query, answer, chosen, clause, joined

ROWS = pl.DataFrame(
    {
        "prompt_id": ["a1", "a2", "b1", "b2"],
        "text": ["The capital of France", 'say "hi"', "2+2=", "STRASSE (x.*)"],
        "split": ["train", "eval", "eval", "train"],
        "reward_gain": [None, 0.5, -0.5, None],
        "truncated": [0.0, 0.25, 0.0, 1.0],
        "flag": [True, False, False, True],
        "note": [None, "odd", None, "see a1"],
    },
    schema_overrides={"note": pl.String},
)


def ids(where: str = "", **query: Any) -> list[str]:
    """The ids that a query chooses, in its order."""
    rows: list[str] = ROWS["prompt_id"].gather(chosen(ROWS, Query(where=where, **query))).to_list()
    return rows


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", ["a1", "a2", "b1", "b2"]),
        ("reward_gain > 0.2", ["a2"]),
        ("reward_gain >= -5e-1", ["a2", "b1"]),
        ("reward_gain < 0 or truncated = 1", ["b1", "b2"]),
        ("reward_gain = none", ["a1", "b2"]),
        ("reward_gain != none and truncated > 0", ["a2"]),
        ("not reward_gain > 0", ["a1", "b1", "b2"]),  # a missing number is no match
        ('text ~ "CAPITAL"', ["a1"]),
        (r'text ~ "say \"HI\""', ["a2"]),
        ('text ~ "(X.*)"', ["b2"]),  # no regular expression
        ('text = "2+2="', ["b1"]),
        ("split = eval and text !~ 2", ["a2"]),
        ("flag", ["a1", "b2"]),
        ("not flag and note = none", ["b1"]),
        ("flag = no", ["a2", "b1"]),
        ("flag != no", ["a1", "b2"]),
        ("note ~ A1", ["b2"]),
        ('note != "odd"', ["b2"]),
        ("split = train and not (flag and truncated = 1) or prompt_id = b1", ["a1", "b1"]),
    ],
)
def test_a_filter_chooses(where: str, expected: list[str]) -> None:
    assert ids(where) == expected


def test_and_binds_tighter_than_or_and_not_tightest() -> None:
    flag, tied = Comparison("flag", "=", True), Comparison("tie_share", "<", 1.0)
    assert parse("flag or not flag and tie_share < 1") == AnyOf((flag, AllOf((Not(flag), tied))))


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        (
            "colour = red",
            "the filter at 'colour = red': there is no field colour: there are text, ",
        ),
        ("reward_gain", "at its end: expected one of = != < <= > >= after reward_gain"),
        ("reward_gain ~ 1", "at '~ 1': expected one of = != < <= > >= after reward_gain"),
        ('reward_gain > "1"', "at '\"1\"': expected a number after reward_gain >"),
        ("reward_gain > none", "at 'none': expected a number after reward_gain >"),
        ("text > 1", "at '> 1': expected one of = != ~ !~ after text"),
        ("flag = 1", "at '1': expected yes or no after flag ="),
        ("flag flag", "at 'flag': expected and, or, or the end"),
        ("(flag", "at its end: expected )"),
        ("flag and", "at its end: expected a field"),
        ("or flag", "at 'or flag': expected a field"),
        ("text ~ 'x'", "at \"'x'\": cannot be read"),
        ('text ~ "x', "at '\"x': cannot be read"),
        ("1 = 1; DROP TABLE", "at '1 = 1; DROP TABLE': expected a field"),
        ("not " * 40 + "flag", "it is nested more than 30 levels deep"),
        ("(" * 40 + "flag", "it is nested more than 30 levels deep"),
        ("x" * 2001, "the filter has 2001 characters: 2000 is the most"),
        ("flag\xa0", "cannot be read"),
    ],
)
def test_anything_else_is_refused_in_one_line(where: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(where)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def parsed(where: str) -> Condition | None:
    """The condition of a filter, None if it is refused."""
    with contextlib.suppress(ConfigError):
        return parse(where)
    return None


def test_random_words_parse_or_are_refused() -> None:
    words = [*FIELDS, "and", "or", "not", "(", ")", "=", "~", ">", '"x"', "1", "none", "\\", '"']
    for _ in range(2000):
        where = " ".join(random.choices(words, k=random.randrange(8)))
        if condition := parsed(where):
            json.dumps(asdict(condition))
            expression(condition)


def test_order_is_stable_with_missing_values_last() -> None:
    assert ids(sort="reward_gain") == ["b1", "a2", "a1", "b2"]
    assert ids(sort="-reward_gain") == ["a2", "b1", "a1", "b2"]
    assert ids(sort="-truncated") == ["b2", "a2", "a1", "b1"]
    assert ids(sort="-flag") == ["a1", "b2", "a2", "b1"]


def test_text_looks_in_the_prompt_and_at_the_beginning_of_ids() -> None:
    assert ids(text="strasse") == ["b2"]
    assert ids(text="b") == ["b1", "b2"]
    assert ids(text="a", where="flag") == ["a1", "b2"]


def test_a_page_and_the_total() -> None:
    page = answer(ROWS, Query(page=2, size=3))
    assert (page.rows["prompt_id"].to_list(), page.total) == (["b2"], 4)
    assert answer(ROWS, Query(page=9)).rows.is_empty()


def test_a_query_is_a_link_and_back() -> None:
    query = Query(text="a&b", where='note ~ "x=1"', sort="-truncated", page=2)
    assert query.url() == "text=a%26b&where=note+~+%22x%3D1%22&sort=-truncated&page=2"
    told = {"text": "a&b", "where": 'note ~ "x=1"', "sort": "-truncated", "page": "2", "x": "y"}
    assert Query.of(told) == query
    assert Query().url() == ""


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"page": "0"}, "page is '0': give a number from 1 to"),
        ({"size": "501"}, "size is '501': give a number from 1 to 500"),
        ({"page": "²"}, "page is '²': give a number from 1 to"),
        ({"sort": "-colour"}, "there is no field 'colour' to sort by: there are text,"),
        ({"where": "("}, "the filter at its end: expected a field"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Query.of(parameters)
    assert str(refused.value).startswith(complaint)


def test_clauses_spell_their_values() -> None:
    where = joined([clause("text", "~", 'a "b" \\'), clause("flag", "=", True), ""])
    assert where == r'(text ~ "a \"b\" \\") and (flag = yes)'
    parts = (Comparison("text", "~", 'a "b" \\'), Comparison("flag", "=", True))
    assert parse(where) == AllOf(parts)
    assert parse(joined([])) == AllOf(())
