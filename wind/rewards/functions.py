"""A user's own function over a batch of responses: loaded, called, and what it returns checked.

This is the boundary to foreign code, for `reward.function` and `evaluation.match` alike: whatever goes wrong beyond it becomes
one line that names the function, the row or the place in its source, and what to do.
"""

import contextlib
import importlib
import json
import numbers
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wind.errors import InputError
from wind.rewards.sources import shown, source_digest

Floats = npt.NDArray[np.float64]

LARGEST = 1e100  # of a reward: what means, deviations and standardized rewards square and add up stays finite

_loaded: dict[str, str] = {}  # the digest under which each function was loaded into this process


@dataclass(frozen=True)
class Responses:
    """Responses to be judged: parallel sequences, one entry per response."""

    prompt_ids: Sequence[str]
    sample_indexes: Sequence[int]
    messages: Sequence[Sequence[Mapping[str, str]]]  # of the prompt: role and text
    responses: Sequence[str]
    answers: Sequence[str | None]
    conversations: Sequence[str | None] = ()  # JSON of the prompt's messages with all their fields, where they have more

    def __len__(self) -> int:
        return len(self.responses)

    def prompts(self) -> list[str]:
        """What the user asked, for each row."""
        return [asked(messages) for messages in self.messages]

    def conversation(self, row: int) -> list[dict[str, Any]]:
        """The messages of a row's prompt as a chat template is given them."""
        whole = self.conversations[row] if self.conversations else None
        if whole is not None:
            return list(json.loads(whole))
        return [{"role": turn["role"], "content": turn["content"]} for turn in self.messages[row]]

    def where(self, row: int) -> str:
        """How row number `row` is named in messages."""
        return f"prompt {self.prompt_ids[row]}, sample {self.sample_indexes[row]}"


@dataclass(frozen=True)
class UserFunction:
    """`module:function` as the config's `setting` names it, and the digest of the source it must have."""

    setting: str
    name: str
    source_digest: str

    def __str__(self) -> str:
        return f"{self.setting} {self.name}"

    def __call__(self, rows: Responses) -> Any:
        """What the function returns for the prompts, responses and answers of `rows`, which are at least one.

        Raises InputError if its source was edited, and for whatever it raises itself: naming the exception, its place in
        the user's file, and the first prompt of the batch.
        """
        function = self._load()
        prompts = rows.prompts()
        with _foreign(f"{self} failed", f" on the {len(rows)} responses from {rows.where(0)}, {_quoted(prompts[0])}"):
            return function(prompts, list(rows.responses), list(rows.answers))

    def _load(self) -> Callable[[list[str], list[str], list[str | None]], Any]:
        if self.name not in _loaded and source_digest(self.setting, self.name) != self.source_digest:
            raise InputError(f"{self} was edited since this stage was planned: start the run again")
        if _loaded.setdefault(self.name, self.source_digest) != self.source_digest:
            raise InputError(f"{self} was edited after this process loaded it: start the run again")
        module, _, attribute = self.name.partition(":")
        with _foreign(f"{self} cannot be imported", ""):
            function = getattr(importlib.import_module(module), attribute)
        if not callable(function):
            raise InputError(f"{self} is a {type(function).__name__}: name a function")
        return function  # type: ignore[no-any-return]


def checked_numbers(what: str, returned: Any, rows: Responses) -> Floats:
    """`returned` as one finite float per row; `what` names the function and column in messages.

    Takes sequences of numbers, NumPy arrays and tensors of one axis; booleans count as 0 and 1. Raises InputError for
    anything else, for a wrong count, and naming the first row whose value is not a finite number.
    """
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        raise InputError(f"{what} returned a {type(returned).__name__}: return one number per response")
    if len(returned) != len(rows):
        raise InputError(f"{what} returned {len(returned)} values for {len(rows)} responses: return one per response, in order")
    with _foreign(f"{what} returned what cannot be read as numbers", ""):
        values = np.asarray(returned)
    if values.ndim != 1:
        raise InputError(f"{what} returned values of shape {values.shape}: return one number per response")
    if values.dtype.kind not in "biuf":
        row = next((row for row, value in enumerate(returned) if not isinstance(value, numbers.Real | np.bool_)), 0)
        raise InputError(f"{what} returned {_quoted(returned[row])} for {rows.where(row)}: return numbers only")
    values = values.astype(np.float64)
    refuse_non_finite(what, values, rows.where)
    return values


def refuse_non_finite(what: str, values: Floats, where: Callable[[int], str]) -> None:
    """Raises InputError naming the first row, as `where` names it, whose value is NaN, infinite, or beyond LARGEST."""
    wrong = np.flatnonzero(~np.isfinite(values) | (np.abs(values) > LARGEST))
    if wrong.size:
        more = f" (and {wrong.size - 1} more rows)" if wrong.size > 1 else ""
        row = int(wrong[0])
        raise InputError(
            f"{what} gave {values[row]} for {where(row)}{more}: every value must be a finite number of at most {LARGEST:g}"
        )


def asked(messages: Sequence[Mapping[str, str]]) -> str:
    """What the user asked: the content of a prompt's last user message (its last message where no user speaks)."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), messages[-1]["content"])


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, empty where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


@contextlib.contextmanager
def _foreign(what: str, rows: str) -> Iterator[None]:
    """Translate whatever foreign code raises in the block into one line."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a user's function may raise anything: here, and only here, all is caught
        said = f"{type(error).__name__}: {first_line(error)}".rstrip(": ")
        raise InputError(f"{what}: {said}{_place(error)}{rows}: fix the function") from error


def _place(error: BaseException) -> str:
    """The file and line of the innermost frame that is the user's: neither an installed package's nor Python's own."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if file != __file__ and not file.startswith(("<", sysconfig.get_path("stdlib")))]
    own = [(file, line) for file, line in own if not {"site-packages", "dist-packages"} & set(Path(file).parts)]
    return f" ({shown(own[-1][0])}:{own[-1][1]})" if own else ""


def _quoted(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
