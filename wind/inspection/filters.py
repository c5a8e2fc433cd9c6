r"""Filters: conditions on the fields of a prompt, in a small closed language.

    reward_gain > 0.2 and (truncated > 0 or flag) and text ~ "capital"

A condition compares a field with a value: numbers by `= != < <= > >=`, texts by `= !=` and by `~ !~`,
which look for a part of the text, upper or lower case alike. Texts stand in double quotes, in which
a backslash precedes a quote or a backslash; a plain word needs none. `FIELD = none` asks whether it
is missing, and a field that is yes or no stands alone. Conditions are joined by `and`, `or` and
`not`, with parentheses. A comparison with a missing field is false.

The page evaluates the same language in the browser (`flows/pages/samples.js`); a test
compares both.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from wind.errors import ConfigError
from wind.inspection.fields import FIELDS, Field

LONGEST: Final = 2000
DEEPEST: Final = 30

TOKEN: Final = re.compile(
    r"[ \t\r\n]*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))"
    r'|(?P<text>"(?:[^"\\]|\\.)*")'
    r"|(?P<operator>!=|>=|<=|!~|[=<>~])"
    r"|(?P<bracket>[()])"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_-]*))",
    re.ASCII | re.DOTALL,
)
COMPARES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OF_TEXT: Final = ("=", "!=", "~", "!~")
MISSING: Final = "none"
WORDS: Final = ("and", "or", "not")


@dataclass(frozen=True)
class Comparison:
    """A field compared with a value; a value of None stands for missing."""

    field: str
    operator: str
    value: str | float | bool | None


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    part: "Condition"


@dataclass(frozen=True)
class AllOf:
    """Several conditions that all hold; without any, everything does."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True)
class AnyOf:
    """Several conditions of which one holds."""

    parts: tuple["Condition", ...]


Condition = Comparison | Not | AllOf | AnyOf


def parse(text: str) -> Condition:
    """Parse a filter; an empty one is `AllOf` nothing.

    Raises ConfigError, in one line that says where, for anything else than this language.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"the filter has {len(text)} characters: {LONGEST} is the most")
    if not text.strip():
        return AllOf(())
    return _Parser(text).condition()


def expression(condition: Condition) -> pl.Expr:
    """Return the polars expression of a condition, which is never null."""
    if isinstance(condition, Comparison):
        return _comparison(condition)
    if isinstance(condition, Not):
        return ~expression(condition.part)
    parts = [expression(part) for part in condition.parts]
    if isinstance(condition, AllOf):
        return pl.all_horizontal(parts) if parts else pl.lit(True)
    return pl.any_horizontal(parts)


def contains(column: str, part: str) -> pl.Expr:
    """Return the expression for a text that has `part`, whatever the case."""
    return pl.col(column).str.contains(f"(?i){pl.escape_regex(part)}")


def _comparison(condition: Comparison) -> pl.Expr:
    column, value = pl.col(condition.field), condition.value
    if value is None:
        return column.is_null() if condition.operator == "=" else column.is_not_null()
    if condition.operator in ("~", "!~"):
        found = contains(condition.field, str(value))
        return (found if condition.operator == "~" else ~found).fill_null(False)
    compared: pl.Expr = COMPARES[condition.operator](column, value)
    return compared.fill_null(False)


class _Parser:
    """A parser by recursive descent: one method for each level of binding."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._kind, self._token, self._begin = "", "", 0
        self._next()

    def condition(self) -> Condition:
        found = self._any()
        if self._kind:
            raise self._error("expected and, or, or the end")
        return found

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._takes("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Condition:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(f"it is nested more than {DEEPEST} levels deep")
        try:
            if self._takes("not"):
                return Not(self._one())
            if self._takes("("):
                found = self._any()
                if not self._takes(")"):
                    raise self._error("expected )")
                return found
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Comparison:
        if self._kind != "word" or self._token in WORDS:
            raise self._error("expected a field")
        if (field := FIELDS.get(self._token)) is None:
            raise self._error(f"there is no field {self._token}: there are {', '.join(FIELDS)}")
        self._next()
        if field.kind == "yes" and self._kind != "operator":
            return Comparison(field.name, "=", True)
        sign = self._token
        allowed = (*COMPARES,) if field.kind == "number" else OF_TEXT
        if field.kind == "yes":
            allowed = ("=", "!=")
        if self._kind != "operator" or sign not in allowed:
            raise self._error(f"expected one of {' '.join(allowed)} after {field.name}")
        self._next()
        return Comparison(field.name, sign, self._value(field, sign))

    def _value(self, field: Field, sign: str) -> str | float | bool | None:
        kind, token = self._kind, self._token
        if kind == "word" and token == MISSING and sign in ("=", "!="):
            value: str | float | bool | None = None
        elif field.kind == "number" and kind == "number":
            value = float(token)
        elif field.kind == "yes" and kind == "word" and token in ("yes", "no"):
            value = token == "yes"
        elif field.kind == "text" and kind == "text":
            value = re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
        elif field.kind == "text" and kind in ("word", "number") and token not in WORDS:
            value = token
        else:
            raise self._error(f"expected {_wanted(field)} after {field.name} {sign}")
        self._next()
        return value

    def _takes(self, token: str) -> bool:
        if self._kind in ("word", "bracket") and self._token == token:
            self._next()
            return True
        return False

    def _next(self) -> None:
        """Read the next token; its kind is empty at the end."""
        self._begin = len(self._text) - len(self._text[self._at :].lstrip(" \t\r\n"))
        if self._begin == len(self._text):
            self._kind = self._token = ""
            return
        match = TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup is None:
            raise self._error("cannot be read")
        self._kind, self._token, self._at = match.lastgroup, match[match.lastgroup], match.end()

    def _error(self, what: str) -> ConfigError:
        rest = self._text[self._begin : self._begin + 20]
        where = f"at {rest!r}" if rest else "at its end"
        return ConfigError(f"the filter {where}: {what}")


def _wanted(field: Field) -> str:
    if field.kind == "number":
        return "a number"
    if field.kind == "yes":
        return "yes or no"
    return "a text in double quotes"
