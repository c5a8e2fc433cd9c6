"""The user's own expectations, from `checks.extra` and `checks.files` of the config.

Expectations in `checks.extra` judge the stored scalar columns, and those of `COMPUTED`. A Python
file in `checks.files` has a function for each dataset that it judges, with the name of the dataset:
`def generations(subject: Subject) -> list[Expectation | Frame]`. Its plain expectations judge the
same columns; its frames are built like those of the suites. Names of other functions in the file
start with an underscore.
"""

import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import great_expectations.expectations as gxe
import polars as pl
import pyarrow as pa
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject
from wind.code.functions import files_digest, shown_path
from wind.config.checks import ChecksConfig, ExtraExpectation
from wind.errors import ConfigError, InputError, first_line
from wind.machine.user_path import from_source, use_user_path
from wind.quantities import IS_TRUNCATED, RESPONSE_TOKENS, TIE_SHARE
from wind.store.handles import label
from wind.store.schemas import KEYS, SCHEMAS

CLASSES: Final = sorted(
    name
    for name in dir(gxe)
    if re.match("Expect(Column|Compound|Multicolumn|Select|TableRow)", name)
)
RESPONSE: Final = {
    "response_tokens": RESPONSE_TOKENS,
    "response_characters": pl.col("response").str.len_chars(),
    "is_truncated": IS_TRUNCATED,
}
# by dataset, the columns that expectations may name beside the stored ones
COMPUTED: Final[dict[str, dict[str, pl.Expr]]] = {
    "prompts": {"prompt_tokens": pl.col("prompt_token_ids").list.len()},
    "generations": RESPONSE,
    "rollouts": RESPONSE,
    "win_rates": {"tie_share": TIE_SHARE},
}
COLUMN_ARGUMENTS: Final = ("column", "column_A", "column_B")

_loaded: dict[tuple[str, str], ModuleType] = {}


def refuse_wrong(
    checks: ChecksConfig, datasets: Sequence[str], components: Sequence[str] = ()
) -> None:
    """Check everything that `checks.extra` and `checks.files` name.

    `datasets` are those with suites; `components` are further columns of the rewards. Raises
    ConfigError, with a one-line message, if a name is unknown or an argument does not fit.
    """
    for noun, extra in checks.extra.items():
        if noun not in datasets:
            raise ConfigError(
                f"checks.extra.{noun}: no dataset with checks is called so; "
                f"{_meant(noun, datasets)}"
            )
        further = components if noun in ("rewards", "rollouts") else ()
        for index, each in enumerate(extra):
            place = _place(noun, index)
            for column in _columns(_expectation(place, each)):
                _require(place, column, [*_known(noun, SCHEMAS[noun]), *further])
    for file in checks.files:
        _functions(file, datasets)


def extra_frames(subject: Subject, checks: ChecksConfig, datasets: Sequence[str]) -> list[Frame]:
    """Build the user's own frames for `subject`.

    Raises ConfigError if the config or a file is wrong, and InputError with the file and line if a
    function in a file fails.
    """
    noun = subject.handle.name
    named = [
        _expectation(_place(noun, index), each)
        for index, each in enumerate(checks.extra.get(noun, ()))
    ]
    frames = [_frame("extra", subject, named)] if named else []
    for file in checks.files:
        function = _functions(file, datasets).get(noun)
        if function is not None:
            frames += _frames_of(file, function, subject, checks)
    return frames


def _frames_of(
    file: str, function: Callable[[Subject], Any], subject: Subject, checks: ChecksConfig
) -> Iterator[Frame]:
    name = Path(file).name
    with _foreign(file, function.__name__):
        returned = list(function(subject))
    wrong = next((each for each in returned if not isinstance(each, Expectation | Frame)), None)
    if wrong is not None:
        raise InputError(
            f"{file}: {function.__name__} returned a {type(wrong).__name__}: "
            "return expectations and frames"
        )
    expectations = [each for each in returned if isinstance(each, Expectation)]
    for index, each in enumerate(expectations):
        each.description = each.description or f"{file}: {function.__name__}, number {index + 1}"
    if expectations:
        yield _frame(name, subject, expectations)
    for frame in (each for each in returned if isinstance(each, Frame)):
        with _foreign(file, function.__name__):
            table, declared = frame.build(subject), frame.expectations(subject, checks)
        yield _built(f"{name}: {frame.name}", frame.key, table, declared)


def _built(
    name: str, key: tuple[str, ...], table: pl.DataFrame, expectations: list[Expectation]
) -> Frame:
    return Frame(name, key, lambda subject: table, lambda subject, checks: expectations)


def _frame(name: str, subject: Subject, expectations: list[Expectation]) -> Frame:
    """Build the frame of the columns that `expectations` name.

    Its key is that of the dataset.
    """
    noun = subject.handle.name
    key, known = KEYS[noun], _known(noun, subject.store.open(subject.handle).schema)
    columns = dict.fromkeys(
        column for each in expectations for column in _columns(each) if column not in key
    )
    for column in columns:
        _require(f"the checks {name} of {label(subject.handle)}", column, known)

    def build(subject: Subject) -> pl.DataFrame:
        made = {
            column: COMPUTED[noun][column] for column in columns if column in COMPUTED.get(noun, {})
        }
        stored = dict.fromkeys(
            [
                *key,
                *(set(columns) - set(made)),
                *(root for each in made.values() for root in each.meta.root_names()),
            ]
        )
        return subject.rows(*stored).select(
            *key, *(made.get(column, pl.col(column)).alias(column) for column in columns)
        )

    return Frame(name, key, build, lambda subject, checks: expectations)


def _expectation(place: str, extra: ExtraExpectation) -> Expectation:
    """Make the expectation that the config describes.

    Raises ConfigError if there is no such class, or an argument does not fit.
    """
    if extra.expectation not in CLASSES:
        raise ConfigError(
            f"{place}: Great Expectations has no {extra.expectation} for rows; "
            f"{_meant(extra.expectation, CLASSES)}"
        )
    arguments = {"description": place, **extra.arguments()}
    try:
        made: Expectation = getattr(gxe, extra.expectation)(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place}: {extra.expectation} {_refusal(error, arguments)}") from error
    return made


def _refusal(error: Exception, arguments: dict[str, Any]) -> str:
    """Say in a few words why an expectation refused its arguments."""
    details = error.errors() if hasattr(error, "errors") else []
    if not details:
        return first_line(error)
    name = str(details[0]["loc"][0])
    if details[0]["type"] == "value_error.extra":
        return f"takes no argument {name}"
    if details[0]["type"] == "value_error.missing":
        return f"needs the argument {name}"
    given = f"{name} is {arguments[name]!r}: " if name in arguments else ""
    return f"does not fit, {given}{details[0]['msg']}"


def _columns(expectation: Expectation) -> list[str]:
    """Return the columns that an expectation judges."""
    fields = expectation.dict()
    named = [fields[name] for name in COLUMN_ARGUMENTS if fields.get(name)]
    return [str(name) for name in [*named, *(fields.get("column_list") or [])]]


def _known(noun: str, schema: pa.Schema) -> list[str]:
    """Return the columns that an expectation of this dataset may name."""
    return [
        *(field.name for field in schema if not pa.types.is_nested(field.type)),
        *COMPUTED.get(noun, {}),
    ]


def _require(place: str, column: str, known: Sequence[str]) -> None:
    if column not in known:
        raise ConfigError(f"{place}: there is no column {column!r}; {_meant(column, known)}")


def _place(noun: str, index: int) -> str:
    return f"checks.extra.{noun}[{index}]"


def _meant(name: str, known: Sequence[str]) -> str:
    guesses = difflib.get_close_matches(name, known, 1, 0.6)
    return f"did you mean {guesses[0]}?" if guesses else f"there are {', '.join(known)}"


def _functions(file: str, datasets: Sequence[str]) -> dict[str, Callable[[Subject], Any]]:
    """Return the functions of a file by dataset.

    Raises ConfigError if there are none, or if one has the name of no dataset.
    """
    module = _module(file)
    own: dict[str, Any] = {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }
    for name in own:
        if name not in datasets:
            line = own[name].__code__.co_firstlineno
            raise ConfigError(
                f"checks.files {file}:{line}: {name} is the name of no dataset with checks; "
                f"{_meant(name, datasets)} Let other functions start with an underscore"
            )
    if not own:
        raise ConfigError(
            f"checks.files {file} has no function named for a dataset; "
            f"there are {', '.join(datasets)}"
        )
    return own


def _module(file: str) -> ModuleType:
    """Run the module in `file`, once for each content.

    Raises ConfigError, with a one-line message naming file and line, if it fails.
    """
    source = files_digest("checks.files", Path(file))
    if (file, source) not in _loaded:
        path = Path(file).resolve()
        module = ModuleType(f"checks_{source[:16]}")
        module.__file__ = str(path)
        use_user_path()
        try:
            # not imported: bytecode beside it may be of other content written in the same second
            with _foreign(file, "it"):
                exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
        except InputError as error:
            raise ConfigError(f"checks.files: {error}") from error
        _loaded[file, source] = module
    return _loaded[file, source]


@contextmanager
def _foreign(file: str, function: str) -> Iterator[None]:
    """Turn any error of the user's code into a one-line InputError.

    It names the file and line of the user's code.
    """
    try:
        with from_source():
            yield
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        path = str(Path(file).resolve())
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        where = f"{shown_path(path)}:{lines[-1]}" if lines else file
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"{where}: {function} failed, {type(error).__name__}: {said}".rstrip(": ")
            + ": fix the file"
        ) from error
