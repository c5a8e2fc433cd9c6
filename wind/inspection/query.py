"""Queries: which prompts of a version to list, and in what order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import polars as pl

from wind.errors import ConfigError
from wind.inspection.fields import FIELDS
from wind.inspection.filters import contains, expression, parse

SIZE: Final = 50
MOST: Final = 500  # prompts on a page
PARAMETERS: Final = ("text", "where", "sort", "page", "size")


@dataclass(frozen=True, kw_only=True)
class Query:
    """A choice of prompts.

    Args:
        text: a part of the prompt, upper or lower case alike, or the first digits of its id.
        where: a filter, see `wind.inspection.filters`.
        sort: the name of a field, after a minus for descending; missing values come last, and
            equal ones in the order of the ids. Empty for the order of the ids.
        page: which page, counted from 1.
        size: the number of prompts on a page.
    """

    text: str = ""
    where: str = ""
    sort: str = ""
    page: int = 1
    size: int = SIZE

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Query":
        """Return the query that the parameters of a URL spell; others than its own are ignored.

        Raises ConfigError in one line for a value that is none.
        """
        given: dict[str, Any] = {
            name: parameters[name] for name in PARAMETERS if parameters.get(name)
        }
        for name, most in (("page", 10**9), ("size", MOST)):
            if name in given:
                value = given[name]
                is_number = value.isascii() and value.isdigit() and len(value) < 12
                if not is_number or not 1 <= int(value) <= most:
                    raise ConfigError(f"{name} is {value!r}: give a number from 1 to {most}")
                given[name] = int(value)
        query = cls(**given)
        query.order()
        parse(query.where)
        return query

    def order(self) -> tuple[str, bool]:
        """Return the field to sort by, and whether descending.

        Raises ConfigError if there is no such field.
        """
        name = self.sort.removeprefix("-") or "prompt_id"
        if name not in FIELDS:
            raise ConfigError(
                f"there is no field {name!r} to sort by: there are {', '.join(FIELDS)}"
            )
        return name, self.sort.startswith("-")

    def url(self) -> str:
        """Return the parameters of a URL that spell this query, without defaults."""
        default = Query()
        return urlencode(
            {
                name: getattr(self, name)
                for name in PARAMETERS
                if getattr(self, name) != getattr(default, name)
            }
        )


@dataclass(frozen=True)
class Page:
    """The prompts of one page, and how many there are on all pages."""

    rows: pl.DataFrame
    total: int


def answer(frame: pl.DataFrame, query: Query) -> Page:
    """Return the prompts of `frame` that `query` asks for.

    `frame` has a column for each field, and is sorted by prompt_id.
    """
    found = chosen(frame, query)
    begin = (query.page - 1) * query.size
    return Page(frame[found[begin : begin + query.size]], len(found))


def chosen(frame: pl.DataFrame, query: Query) -> pl.Series:
    """Return the rows of `frame` that `query` asks for, on all pages, in its order."""
    name, is_descending = query.order()
    rows = frame.lazy().with_row_index("row")
    if query.where.strip():
        rows = rows.filter(expression(parse(query.where)))
    if query.text:
        begins = pl.col("prompt_id").str.starts_with(query.text)
        rows = rows.filter(contains("text", query.text).fill_null(False) | begins)
    if query.sort not in ("", "prompt_id"):
        rows = rows.sort(name, descending=is_descending, nulls_last=True, maintain_order=True)
    return rows.select("row").collect()["row"]


def clause(field: str, operator: str, value: str | float | bool) -> str:
    """Return the filter that compares one field with a value."""
    if isinstance(value, bool):
        return f"{field} {operator} {'yes' if value else 'no'}"
    if isinstance(value, str):
        escaped = value.replace("\\", r"\\").replace('"', r"\"")
        return f'{field} {operator} "{escaped}"'
    return f"{field} {operator} {value}"


def joined(clauses: Iterable[str]) -> str:
    """Return the filter of which every one of `clauses` holds."""
    parts: Sequence[str] = [clause for clause in clauses if clause.strip()]
    return parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)
