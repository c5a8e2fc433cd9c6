"""Calls of a user's function, and checks of what it returns.

This is the boundary to foreign code, for `reward.function` and `evaluation.match` alike. Anything
that goes wrong beyond it becomes one line that names the function, the row or the place in its
source, and what to do.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wind.code.functions import shown_path, source_digest
from wind.errors import InputError, StageError, shown
from wind.machine.user_path import user_path
from wind.rewards.hosts import EndedError, Host, keep_warm, warm_host

Floats = npt.NDArray[np.float64]
# `values`, or `problem` and `row`, see `wind.rewards.host`
Column = Mapping[str, Any]

# The largest reward: sums and squares of rewards, as in their mean and deviation, stay finite.
LARGEST = 1e100

TIMEOUTS: Final = {
    "reward.function": "reward.timeout",
    "evaluation.match": "evaluation.match_timeout",
}
# for an import, if a call has less: it may load a model
LOADING_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Responses:
    """Responses to judge: parallel sequences, one entry per response."""

    prompt_ids: Sequence[str]
    sample_indexes: Sequence[int]
    # of the prompt: role and text
    messages: Sequence[Sequence[Mapping[str, str]]]
    responses: Sequence[str]
    answers: Sequence[str | None]
    # JSON of the prompt's messages with all their fields, None if they have only role and text
    conversations: Sequence[str | None] = ()
    # of the prompt: the text that the policy sees
    rendered: Sequence[str] = ()
    # of the policy that sampled them, and whether the token limit ended them; empty unless the
    # reward reads tokens
    token_ids: Sequence[Sequence[int]] = ()
    is_truncated: Sequence[bool] = ()
    # what a reward compares within, if that is less than a prompt
    groups: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.responses)

    def prompts(self) -> list[str]:
        """Return what the user asked, for each row."""
        return [asked(messages) for messages in self.messages]

    def conversation(self, row: int) -> list[dict[str, Any]]:
        """Return the messages of a row's prompt for a chat template."""
        whole = self.conversations[row] if self.conversations else None
        if whole is not None:
            return list(json.loads(whole))
        return [{"role": turn["role"], "content": turn["content"]} for turn in self.messages[row]]

    def joined(self, other: "Responses") -> "Responses":
        """Return these responses, followed by the `other` ones."""
        mine, theirs = (
            [getattr(each, field.name) for field in fields(each)] for each in (self, other)
        )
        return Responses(*([*ours, *further] for ours, further in zip(mine, theirs, strict=True)))

    def where(self, row: int) -> str:
        """Return the name of row number `row` in messages."""
        return f"prompt {self.prompt_ids[row]}, sample {self.sample_indexes[row]}"


@dataclass(frozen=True)
class UserFunction:
    """A user's function, `module:function`, that runs in a host.

    `setting` is the setting that names it, and `source_digest` the digest its source must have. The
    host (see `wind.rewards.hosts`) works in the current folder of this process.
    """

    setting: str
    name: str
    source_digest: str
    # the time limit of one call; None: no limit
    seconds: float | None = None
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.setting} {self.name}"

    def __call__(self, rows: Responses) -> dict[str, Column]:
        """Call the function on the prompts, responses and answers of `rows`.

        There must be at least one row. Returns columns by name; a bare sequence is named "". Raises
        InputError if the source was edited, if the call takes too long or ends its process, and for
        any exception of the function, naming it, its place in the user's file, and the first prompt
        of the batch.
        """
        prompts = rows.prompts()
        request = {
            "prompts": prompts,
            "responses": list(rows.responses),
            "answers": list(rows.answers),
        }
        batch = f" on the {len(rows)} responses from {rows.where(0)}, {shown(prompts[0])}"
        columns: dict[str, Column] = self._asked(self._host(), request, batch, self.seconds)[
            "columns"
        ]
        return columns

    def _host(self) -> Host:
        """Return the function's warm host, or start one.

        A new host has loaded the source of the plan.
        """
        key = (self.name, self.source_digest, self.device, *user_path())
        if (host := warm_host(key)) is not None:
            if not host.observed.changed():
                return host
            host.end()
        self._refuse_edited()
        try:
            host = Host(self.device)
        except OSError as error:
            raise StageError(
                f"{self} cannot be run: no process can be started ({error})"
            ) from error
        try:
            loaded = self._asked(
                host, {"load": self.name}, "", self.seconds and max(self.seconds, LOADING_SECONDS)
            )
            self._refuse_edited()
            if "type" in loaded:
                raise InputError(f"{self} is a {loaded['type']}: name a function")
        except BaseException:
            host.end()
            raise
        keep_warm(key, host)
        return host

    def _refuse_edited(self) -> None:
        if source_digest(self.setting, self.name) != self.source_digest:
            raise InputError(f"{self} was edited since this stage was planned: start the run again")

    def _asked(
        self, host: Host, request: Mapping[str, Any], batch: str, seconds: float | None
    ) -> dict[str, Any]:
        """Return the host's answer.

        Raises InputError if the user's code raises, ends the host, or takes too long.
        """
        where = batch or " while it was imported"
        try:
            answer = host.ask(request, seconds)
        except TimeoutError:
            raise InputError(
                f"{self} took more than {seconds:g} seconds{where}: "
                f"make it faster, or raise {TIMEOUTS[self.setting]}"
            ) from None
        except EndedError as error:
            raise InputError(f"{self} {error.how}{where}; {error.said}: fix the function") from None
        if raised := answer.get("raised"):
            place = (
                f" ({shown_path(raised['place'][0])}:{raised['place'][1]})"
                if raised["place"]
                else ""
            )
            what = f"{self} failed" if batch else f"{self} cannot be imported"
            raise InputError(f"{what}: {raised['said']}{place}{batch}: fix the function")
        return answer


def checked_numbers(what: str, column: Column, rows: Responses) -> Floats:
    """Return the values of a column from a host.

    `what` names the column in messages. Raises InputError if they are not numbers, naming the first
    row whose value is not a finite number.
    """
    if "problem" in column:
        row = column["row"]
        where = "" if row is None else f" for {rows.where(row)}: return numbers only"
        raise InputError(f"{what} {column['problem']}{where}")
    values = np.array(column["values"], dtype=np.float64)
    refuse_non_finite(what, values, rows.where)
    return values


def refuse_non_finite(what: str, values: Floats, where: Callable[[int], str]) -> None:
    """Raise InputError if a value is NaN, infinite, or beyond LARGEST.

    The message names the first such row, as `where` does.
    """
    wrong = np.flatnonzero(~np.isfinite(values) | (np.abs(values) > LARGEST))
    if wrong.size:
        more = f" (and {wrong.size - 1} more rows)" if wrong.size > 1 else ""
        row = int(wrong[0])
        raise InputError(
            f"{what} gave {values[row]} for {where(row)}{more}: "
            f"every value must be a finite number of at most {LARGEST:g}"
        )


def asked(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the content of a prompt's last user message.

    If there is none, that of its last message.
    """
    return next(
        (message["content"] for message in reversed(messages) if message["role"] == "user"),
        messages[-1]["content"],
    )
