"""Run the suite of a dataset in Great Expectations.

This is the only place where a frame becomes pandas. Every frame of the suite, the drift since the
iteration before and the user's own expectations are validated in one ephemeral context, which lives
as long as the process. The results and a page are stored beside the datasets in any case. A failed
expectation raises, so that nothing is computed from the dataset, unless its severity is `warning`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final

from great_expectations import ExpectationSuite, __version__, get_context
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.core.batch_definition import BatchDefinition
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.render import RenderedDocumentContent
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from great_expectations.util import convert_to_json_serializable

from data_checks import (
    bandit,
    comparison,
    drift,
    evaluation,
    generations,
    logps,
    metrics,
    prompts,
    rates,
    rewards,
    rollouts,
    selections,
    training,
    win_rates,
)
from data_checks.base import Frame, Subject, Suite
from data_checks.extension import extra_frames, refuse_wrong
from data_checks.parts import in_parts
from data_checks.results import CheckResult, failed, key, mark_latest, recorded, result_name
from wind.config.checks import ChecksConfig
from wind.errors import DataCheckError, DatasetError
from wind.fingerprints import digest
from wind.redaction import redacted
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.stamps import stamped

__all__ = ["SUITES", "CheckResult", "failed", "recorded", "refuse_wrong_checks", "validate"]

SUITES: Final[Mapping[str, Suite]] = {
    "prompts": prompts.SUITE,
    "generations": generations.SUITE,
    "rewards": rewards.SUITE,
    "win_rates": win_rates.SUITE,
    "selections": selections.SUITE,
    "logps": logps.SUITE,
    "training": training.SUITE,
    "rollouts": rollouts.SUITE,
    "evaluation": evaluation.SUITE,
    "metrics": metrics.SUITE,
    "comparison": comparison.SUITE,
    "bandit": bandit.SUITE,
    "rates": rates.SUITE,
}

Frames = Mapping[str, ExpectationSuiteValidationResult]

OFFENDERS = 5
RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": OFFENDERS,
    "return_unexpected_index_query": False,
}

# Great Expectations has process-wide state, the current context, which concurrent tasks share.
_ONE_AT_A_TIME = threading.Lock()


def refuse_wrong_checks(checks: ChecksConfig, components: tuple[str, ...] = ()) -> None:
    """Check the user's own expectations. Raises ConfigError if one is wrong.

    `components` are those of the reward. The message is one line.
    """
    refuse_wrong(checks, tuple(SUITES), components)


def validate(
    handle: Dataset, store: Store, checks: ChecksConfig, previous: Dataset | None = None
) -> CheckResult:
    """Check `handle` by its suite, and store the result with its page.

    `previous` is the dataset of the iteration before, from which drift is measured.

    Raises:
        DataCheckError: an expectation failed; the message is one line with the dataset, the
            expectation, its column, the number of failing rows, up to five of their keys, and the
            page.
        DatasetError: there is no suite for `handle`, or its manifest lacks a parent or setting that
            the suite needs.
        ConfigError, InputError: one of the user's own expectations is wrong, or its code failed.
    """
    if handle.name not in SUITES:
        raise DatasetError(
            f"no data checks are known for {label(handle)}: the suites are {', '.join(SUITES)}"
        )
    subject = Subject.of(handle, store)
    moved = None if previous is None else drift.shifts(subject, Subject.of(previous, store))
    suite = [
        *SUITES[handle.name],
        *([] if moved is None or moved.is_empty() else [drift.frame(moved)]),
        *extra_frames(subject, checks, tuple(SUITES)),
    ]
    frames = {
        frame.name: in_parts(_judge, frame, subject, checks, offenders=OFFENDERS) for frame in suite
    }
    wanted = key(store, handle, checks, previous)
    failures = tuple(_findings(handle.name, frames, "critical"))
    result = CheckResult(
        handle=handle,
        success=not failures,
        expectations=sum(len(frame.results) for frame in frames.values()),
        key=wanted,
        suite=digest(
            {name: [_declaration(each) for each in frame.results] for name, frame in frames.items()}
        ),
        path=result_name(handle, wanted).removesuffix(".json") + ".html",
        warnings=tuple(_findings(handle.name, frames, "warning")),
        failures=failures,
        previous=previous,
    )
    _keep(result, frames, [] if moved is None else moved.to_dicts(), store)
    if not result.success:
        raise DataCheckError(_message(result, store))
    return result


def _judge(
    frame: Frame, subject: Subject, checks: ChecksConfig
) -> ExpectationSuiteValidationResult:
    """Judge one frame.

    Results are in the order in which the expectations are declared; offending rows are identified
    by their keys.
    """
    table, expectations = frame.build(subject), frame.expectations(subject, checks)
    suite = ExpectationSuite(frame.name, expectations=expectations)
    with _ONE_AT_A_TIME:
        batch = _batch_definition().get_batch({"dataframe": table.to_pandas()})
        judged = batch.validate(suite, result_format=RESULT_FORMAT)
    order = {_identity(each.configuration): index for index, each in enumerate(expectations)}
    judged.results.sort(key=lambda each: order[_identity(_configuration(each))])
    # it has times and memory addresses
    judged.meta = {}
    for each in judged.results:
        _configuration(each).kwargs.pop("batch_id", None)
        if each.exception_info.get("exception_traceback"):
            # a traceback shows folders of this machine
            each.exception_info["exception_traceback"] = None
        each.result = _plain(each.result)
        positions = each.result.get("partial_unexpected_index_list")
        if positions is not None:
            each.result["partial_unexpected_index_list"] = (
                table[positions].select(frame.key).to_dicts()
            )
    return judged


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """Return `result` without numpy scalars, and with NaN as a word.

    A page cannot print the former, and JSON cannot write the latter.
    """
    plain: dict[str, Any] = json.loads(
        json.dumps(convert_to_json_serializable(result)), parse_constant=str
    )
    return plain


@cache
def _batch_definition() -> BatchDefinition[Any]:
    """Return the definition by which any frame is handed to Great Expectations.

    Its context is in memory only.
    """
    context = get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return (
        context.data_sources.add_pandas("frames")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("whole")
    )


def _keep(result: CheckResult, frames: Frames, moved: list[dict[str, Any]], store: Store) -> None:
    """Store the page, the JSON, and at last `latest`.

    `failed` reads `latest`.
    """
    moved = [_plain(row) for row in moved]
    page = redacted(_page(result, frames, moved)).encode()
    content = result.model_dump(mode="json") | {
        "page_sha256": hashlib.sha256(page).hexdigest(),
        "great_expectations": __version__,
        "shifts": moved,
        "frames": {name: _json(frame) for name, frame in frames.items()},
    }
    name = result_name(result.handle, result.key)
    store.storage.write(result.path, page)
    store.storage.write(name, stamped("check", redacted(content)))
    mark_latest(store, result.handle, result.key)


def _json(frame: ExpectationSuiteValidationResult) -> dict[str, Any]:
    content: dict[str, Any] = frame.to_json_dict()  # type: ignore[no-untyped-call]
    return content


def _page(result: CheckResult, frames: Frames, moved: list[dict[str, Any]]) -> str:
    """Render the results as one self-contained page.

    Data Docs render them; the page loads nothing from elsewhere.
    """
    renderer = ValidationResultsPageRenderer()
    page: str = _page_view().render(  # type: ignore[no-untyped-call]
        RenderedDocumentContent(sections=[]),
        template="checks.j2",
        result=result,
        label=label(result.handle),
        before="" if result.previous is None else label(result.previous),
        shifts=moved,
        frames={
            name: renderer.render(_escaped(frame)).to_json_dict()["sections"][1:]
            for name, frame in frames.items()
        },
    )
    return page


def _escaped(frame: ExpectationSuiteValidationResult) -> ExpectationSuiteValidationResult:
    """Return a copy of the results that is safe in HTML.

    Data Docs put values found in the data into the page as they are.
    """
    safe = deepcopy(frame)
    for each in safe.results:
        each.result = json.loads(escape(json.dumps(each.result), quote=False))
        configuration = _configuration(each)
        # Data Docs mark a warning as they mark a failure
        note = " (a warning)" if configuration.severity == "warning" else ""
        configuration.description = escape(f"{configuration.description}{note}", quote=False)
    return safe


@cache
def _page_view() -> DefaultJinjaPageView:
    return DefaultJinjaPageView(custom_views_directory=str(Path(__file__).parent))


def _message(result: CheckResult, store: Store) -> str:
    """Say in one line what failed and where to look.

    It has the first expectation that failed, and how many others did.
    """
    first, *others = result.failures
    more = f"; {len(others)} more failed" if others else ""
    return f"{label(result.handle)} failed {first}{more}; see {store.url}/{result.path}"


def _findings(noun: str, frames: Frames, severity: str) -> Iterator[str]:
    """Describe each failed expectation of that severity, in one line.

    The line names the expectation and its column, the number of rows, and the keys of some.
    """
    for name, frame in frames.items():
        for each in frame.results:
            if each.success or (_configuration(each).severity == "critical") != (
                severity == "critical"
            ):
                continue
            if name == drift.NAME and "partial_unexpected_list" in each.result:
                row, shift = (
                    each.result["partial_unexpected_index_list"][0],
                    each.result["partial_unexpected_list"][0],
                )
                yield drift.finding(noun, row, shift, _configuration(each).kwargs["max_value"])
            else:
                yield _finding(name, each)


def _finding(rows: str, failure: ExpectationValidationResult) -> str:
    configuration, found = _configuration(failure), failure.result
    if failure.exception_info.get("raised_exception"):
        what = (
            f"it could not be judged, {failure.exception_info['exception_message']}".splitlines()[0]
        )
    elif "unexpected_count" in found:
        keys = [
            "/".join(_short(*field) for field in row.items())
            for row in found["partial_unexpected_index_list"]
        ]
        examples = ", ".join(filter(None, keys)) or f"found {found['partial_unexpected_list'][0]}"
        what = f"{found['unexpected_count']} of {found['element_count']} {rows} fail: {examples}"
    else:
        what = f"the value is {found.get('observed_value')}"
    return redacted(
        f"{configuration.type}({_column(configuration)}), {configuration.description}: {what}"
    )


def _short(column: str, value: Any) -> str:
    return value[:12] if column == "prompt_id" else str(value)


def _configuration(result: ExpectationValidationResult) -> ExpectationConfiguration:
    # never None after a run
    configuration: ExpectationConfiguration = result.expectation_config  # type: ignore[assignment]
    return configuration


def _identity(configuration: ExpectationConfiguration) -> tuple[str, str, str | None]:
    return configuration.type, _column(configuration), configuration.description


def _declaration(result: ExpectationValidationResult) -> list[Any]:
    configuration = _configuration(result)
    return [
        configuration.type,
        configuration.kwargs,
        configuration.description,
        configuration.severity,
    ]


def _column(configuration: ExpectationConfiguration) -> str:
    """Return the name of the column, or columns, that an expectation judges."""
    names = configuration.kwargs
    if "column_list" in names:
        return ", ".join(names["column_list"])
    if "column_A" in names:
        return f"{names['column_A']}, {names['column_B']}"
    return str(names.get("column", ""))
