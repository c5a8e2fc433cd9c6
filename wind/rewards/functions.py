"""A user's own function over a batch of responses: loaded, called, and what it returns checked.

This is the boundary to foreign code, for `reward.function` and `evaluation.match` alike: whatever
goes wrong beyond it becomes one line that names the function, the row or the place in its source,
and what to do.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wind.code.functions import shown_path, source_digest
from wind.errors import InputError, StageError, shown
from wind.machine.user_path import user_path
from wind.rewards.hosts import EndedError, Host, keep_warm, warm_host

Floats = npt.NDArray[np.float64]
Column = Mapping[str, Any]  # `values`, or `problem` and `row`, see `wind.rewards.host`

# of a reward: what means, deviations and standardized rewards square and add up stays finite
LARGEST = 1e100

TIMEOUTS: Final = {
    "reward.function": "reward.timeout",
    "evaluation.match": "evaluation.match_timeout",
}
LOADING_SECONDS: Final = 600.0  # for an import, where a call has less: it may load a model


@dataclass(frozen=True)
class Responses:
    """Responses to be judged: parallel sequences, one entry per response."""

    prompt_ids: Sequence[str]
    sample_indexes: Sequence[int]
    messages: Sequence[Sequence[Mapping[str, str]]]  # of the prompt: role and text
    responses: Sequence[str]
    answers: Sequence[str | None]
    # JSON of the prompt's messages with all their fields, where they have more
    conversations: Sequence[str | None] = ()

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
    """`module:function` as the config's `setting` names it, the digest of the source it must have,
    and its timeout.

    It runs in a host, see `wind.rewards.hosts`, in the folder that this process is in.
    """

    setting: str
    name: str
    source_digest: str
    seconds: float | None = None  # that one call may take; None: any number
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.setting} {self.name}"

    def __call__(self, rows: Responses) -> dict[str, Column]:
        """What the function returns for the prompts, responses and answers of `rows`, at least one:
        columns, "" for a bare one.

        Raises InputError if its source was edited, if it takes too long or ends its process, and
        for whatever it raises itself: naming the exception, its place in the user's file, and the
        first prompt of the batch.
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
        """The warm host of the function, or a new one that has loaded the source that was planned
        with.
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
        """What the host answers. Raises InputError for what the user's code raises, and if it ends
        the host or takes too long.
        """
        where = batch or " while it was imported"
        try:
            answer = host.ask(request, seconds)
        except TimeoutError:
            raise InputError(
                f"{self} took more than {seconds:g} seconds{where}: make it faster, or raise {TIMEOUTS[self.setting]}"
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
    """The values of a column that a host returned, finite ones; `what` names the function and
    column in messages.

    Raises InputError for what is not numbers, and naming the first row whose value is not one, or
    is not finite.
    """
    if "problem" in column:
        row = column["row"]
        raise InputError(
            f"{what} {column['problem']}{'' if row is None else f' for {rows.where(row)}: return numbers only'}"
        )
    values = np.array(column["values"], dtype=np.float64)
    refuse_non_finite(what, values, rows.where)
    return values


def refuse_non_finite(what: str, values: Floats, where: Callable[[int], str]) -> None:
    """Raises InputError naming the first row, as `where` names it, whose value is NaN, infinite, or
    beyond LARGEST.
    """
    wrong = np.flatnonzero(~np.isfinite(values) | (np.abs(values) > LARGEST))
    if wrong.size:
        more = f" (and {wrong.size - 1} more rows)" if wrong.size > 1 else ""
        row = int(wrong[0])
        raise InputError(
            f"{what} gave {values[row]} for {where(row)}{more}: every value must be a finite number of at most {LARGEST:g}"
        )


def asked(messages: Sequence[Mapping[str, str]]) -> str:
    """What the user asked: the content of a prompt's last user message (its last message where no
    user speaks).
    """
    return next(
        (message["content"] for message in reversed(messages) if message["role"] == "user"),
        messages[-1]["content"],
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, empty where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
