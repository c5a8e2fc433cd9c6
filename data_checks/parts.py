"""Judge a frame part by part, in bounded memory.

The memory depends on the rows of a part, not on those of the dataset. A part has all rows of some
prompts, of the dataset and of its parents. An expectation about rows, or about the rows of one
prompt, gives the same in parts as on the whole: the counts are added, and the first offending rows
kept. A mean is the mean of the parts' means, weighted by their rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject
from wind.config.checks import ChecksConfig

Judge = Callable[[Frame, Subject, ChecksConfig], ExpectationSuiteValidationResult]

OF_ROWS = (
    gxe.ExpectColumnPairValuesToBeEqual,
    gxe.ExpectColumnValuesToBeBetween,
    gxe.ExpectColumnValuesToBeInSet,
    gxe.ExpectColumnValuesToMatchRegex,
    gxe.ExpectColumnValuesToNotBeNull,
)
LISTS = ("partial_unexpected_list", "partial_unexpected_index_list")


def in_parts(
    judge: Judge, frame: Frame, subject: Subject, checks: ChecksConfig, *, offenders: int
) -> ExpectationSuiteValidationResult:
    """Judge the whole frame, in parts where possible.

    The frame and all its expectations must allow it.
    Up to `offenders` offending rows are kept for each expectation, as `judge` keeps them.
    """
    expectations = frame.expectations(subject, checks)
    subjects = (
        subject.parts() if frame.by_prompt and all(map(_is_of_prompts, expectations)) else [subject]
    )
    if len(subjects) == 1:
        return judge(frame, subject, checks)
    means = {
        each.column: _Mean()
        for each in expectations
        if isinstance(each, gxe.ExpectColumnMeanToBeBetween)
    }

    def build(part: Subject) -> pl.DataFrame:
        table = frame.build(part)
        for column, mean in means.items():
            mean.add(table[column])
        return table

    parts = [judge(replace(frame, build=build), part, checks) for part in subjects]
    whole = parts[0]
    for place, expectation in enumerate(expectations):
        pieces = [part.results[place] for part in parts]
        if isinstance(expectation, gxe.ExpectColumnMeanToBeBetween):
            whole.results[place] = _of_mean(
                judge, frame, subject, checks, expectation, means[expectation.column].value()
            )
        else:
            whole.results[place] = _of_rows(pieces, expectation, offenders)
    held = sum(bool(each.success) for each in whole.results)
    whole.success = held == len(expectations)
    whole.statistics = {
        "evaluated_expectations": len(expectations),
        "successful_expectations": held,
        "unsuccessful_expectations": len(expectations) - held,
        "success_percent": held / len(expectations) * 100,
    }
    return whole


def _is_of_prompts(expectation: Expectation) -> bool:
    """Return true for an expectation that can be judged in parts.

    It is about rows, about the rows of one prompt, or about a mean.
    """
    if isinstance(expectation, gxe.ExpectColumnValuesToBeUnique):
        return bool(expectation.column == "prompt_id")
    if isinstance(expectation, gxe.ExpectCompoundColumnsToBeUnique):
        return "prompt_id" in expectation.column_list
    return isinstance(expectation, (*OF_ROWS, gxe.ExpectColumnMeanToBeBetween))


class _Mean:
    """The mean of a column that comes in parts."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, values: pl.Series) -> None:
        numbers = values.cast(pl.Float64).drop_nulls().drop_nans()
        self._sum += float(numbers.sum())
        self._count += len(numbers)

    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


def _of_mean(
    judge: Judge,
    frame: Frame,
    subject: Subject,
    checks: ChecksConfig,
    expectation: Any,
    mean: float | None,
) -> ExpectationValidationResult:
    """Evaluate the expectation on a column with one row, the mean.

    Its mean is that of the full column.
    """
    row = pl.DataFrame({expectation.column: [mean]}, schema={expectation.column: pl.Float64})
    judged = judge(
        replace(frame, build=lambda _: row, expectations=lambda *_: [expectation]), subject, checks
    )
    return judged.results[0]


def _of_rows(
    pieces: Sequence[ExpectationValidationResult], expectation: Any, offenders: int
) -> ExpectationValidationResult:
    """Add up the results of the parts.

    The result of a part that could not be judged stands for all of them.
    """
    for piece in pieces:
        if piece.exception_info.get("raised_exception"):
            return piece
    whole, results = pieces[0], [piece.result for piece in pieces]
    found = dict(results[0])
    for name in ("element_count", "unexpected_count", "missing_count"):
        if name in found:
            found[name] = sum(result[name] for result in results)
    elements, unexpected = found["element_count"], found["unexpected_count"]
    considered = elements - found.get("missing_count", 0)
    shares = {
        "unexpected_percent": _percent(unexpected, considered),
        "unexpected_percent_nonmissing": _percent(unexpected, considered),
        "unexpected_percent_total": _percent(unexpected, elements),
        "missing_percent": _percent(found.get("missing_count", 0), elements),
    }
    found |= {name: share for name, share in shares.items() if name in found}
    for name in LISTS:
        if name in found:
            found[name] = [value for result in results for value in result[name]][:offenders]
    found["partial_unexpected_counts"] = _counts(found[LISTS[0]])
    whole.result = found
    whole.success = not considered or (considered - unexpected) / considered >= expectation.mostly
    return whole


def _percent(count: int, of: int) -> float | None:
    return count / of * 100 if of else None


def _counts(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Count the occurrences of each of `values`, the most frequent first.

    NaN and null equal nothing, not even themselves.
    """
    plain = [list(value.values()) if isinstance(value, Mapping) else value for value in values]
    counted = Counter(
        (json.dumps(value), place if value in (None, "NaN") else None)
        for place, value in enumerate(plain)
    )
    order = sorted(
        ((json.loads(text), count) for (text, _), count in counted.items()),
        key=lambda each: (-each[1], each[0]),
    )
    return [{"value": value, "count": count} for value, count in order]
