"""The host of a user's function: a process of its own.

The function cannot touch our process. `wind.rewards.hosts` runs this file as a plain script. Its
argument is the descriptor of a socket, on which it answers each line of JSON with another:

    {"load": "module:function"}
        {"loaded": true}, or {"type": "int"} if it is not callable
    {"prompts": [...], "responses": [...], "answers": [...]}
        {"columns": {"": {"values": [0.5, ...]}}}

or with `raised`: what the user's code raised and where. Every answer includes `observed`, what that
code has used so far (see `wind.code.observing`). Columns have the names of the mapping that the
function returned; a bare sequence is named "". A column that is not numbers has a `problem` instead
of values, and its `row`, or None if no single row is at fault.

The user's code runs on the main thread, the only one unless it starts others. Standard input is
empty, and output goes to a log. This file imports no package, and of ours only what finds and
observes the user's modules.
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import json
import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import IO, Any

from wind.code.observing import Observer
from wind.machine.user_path import VARIABLE, use_user_path, user_pythonpath

# methods of NumPy, torch and pandas; of polars; of pyarrow
AS_LISTS = ("tolist", "to_list", "to_pylist")
# kinds of a NumPy scalar that `float` accepts but that are no real number: times, complex numbers
UNREAL = "mMc"


class RefusedError(Exception):
    """The function returned something that is not numbers.

    `row` says where; None if it is all of the column.
    """

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem)
        self.row = row


class Host:
    """A user's function, and the loop its coroutines run in."""

    def __init__(self) -> None:
        self._function: Any = None
        self._observer = Observer()
        # The same loop for all calls: a client that a module keeps belongs to the loop it began in.
        self._runner = asyncio.Runner()

    def load(self, name: str) -> dict[str, Any]:
        """Import the function called `name`, and report whether it is callable."""
        module, _, attribute = name.partition(":")
        self._observer.begin(module.partition(".")[0])
        self._function = getattr(importlib.import_module(module), attribute)
        return (
            {"loaded": True}
            if callable(self._function)
            else {"type": type(self._function).__name__}
        )

    def observed(self) -> dict[str, Any]:
        """Return what the user's code has used so far."""
        return self._observer.report()

    def call(
        self, prompts: list[str], responses: list[str], answers: list[str | None]
    ) -> dict[str, Any]:
        """Call the function on one batch.

        Returns its result as columns of floats.
        """
        returned = self._function(prompts, responses, answers)
        if _has_awaitables(returned):
            returned = self._runner.run(_awaited(returned))
        return {
            "columns": {
                name: _floats(column, len(responses)) for name, column in _named(returned).items()
            }
        }


def main(descriptor: int) -> None:
    """Serve requests until the other side closes the socket."""
    requests = os.fdopen(descriptor, "rb", closefd=False)
    answers = os.fdopen(descriptor, "wb", closefd=False)
    os.set_inheritable(descriptor, False)
    # A forked process, such as a pool's worker, may outlive this one and must not be taken for it.
    os.register_at_fork(after_in_child=lambda: os.close(descriptor))
    use_user_path()
    # programs that the user's code starts get the variable as the command had it
    os.environ["PYTHONPATH"] = user_pythonpath()
    os.environ.pop(VARIABLE, None)
    sys.argv = sys.argv[:1]
    _serve(requests, answers, os.getcwd())


def _serve(requests: IO[bytes], answers: IO[bytes], folder: str) -> None:
    host = Host()
    for line in requests:
        request = json.loads(line)
        with contextlib.suppress(OSError):  # the folder is gone
            os.chdir(folder)
        function = host.load if "load" in request else host.call
        answer = _answered(functools.partial(function, *request.values()))
        answer["observed"] = host.observed()
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answered(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `compute`, or what it raised."""
    ours = os.getpid()
    answer, error = {}, None
    try:
        answer = compute()
    except BaseException as raised:  # a user's function may raise anything, `sys.exit` included
        error = raised
    if os.getpid() != ours:
        _end_fork(error)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        # an alarm left on would end this process while it waits
        signal.setitimer(timer, 0)
    if error is not None:
        traceback.print_exception(error)
        return {"raised": {"said": _said(error), "place": _place(error)}}
    return answer


def _end_fork(error: BaseException | None) -> None:
    """End a process that the user's code forked.

    It returned from the function. The process that forked it answers.
    """
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    os._exit(code if isinstance(code, int) else int(code is not None))


def _has_awaitables(returned: Any) -> bool:
    each = returned if isinstance(returned, list | tuple) else [returned]
    return any(map(inspect.isawaitable, each))


async def _awaited(returned: Any) -> Any:
    """Await `returned` and the awaitables in it.

    Those of a list are awaited all at once.
    """
    if inspect.isawaitable(returned):
        returned = await returned
    if not _has_awaitables(returned):
        return returned

    async def one(value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    return await asyncio.gather(*map(one, returned))


def _named(returned: Any) -> dict[str, Any]:
    """Return the columns of a mapping or data frame, by name.

    A list of mappings will do, too. Anything else is one column named "".
    """
    if isinstance(returned, Mapping):
        return {str(name): column for name, column in returned.items()}
    # of pyarrow; of pandas and polars
    names = getattr(returned, "column_names", getattr(returned, "columns", None))
    if names is not None and hasattr(returned, "__getitem__"):
        return {str(name): returned[name] for name in names}
    if (
        isinstance(returned, list | tuple)
        and returned
        and all(isinstance(row, Mapping) for row in returned)
    ):
        columns = dict.fromkeys(name for row in returned for name in row)
        return {str(name): [row.get(name) for row in returned] for name in columns}
    return {"": returned}


def _floats(column: Any, count: int) -> dict[str, Any]:
    """Return the `count` values of a column, or its problem."""
    try:
        listed = _listed(column)
        if len(listed) != count:
            raise RefusedError(
                f"returned {len(listed)} values for {count} responses: "
                "return one per response, in order"
            )
        return {"values": [_float(row, value) for row, value in enumerate(listed)]}
    except RefusedError as error:
        return {"problem": str(error), "row": error.row}


def _listed(column: Any) -> list[Any]:
    """Return the values of a column of any type, in order.

    Raises RefusedError for a type without order and for a single value.
    """
    listed: Any = None
    to_list = next(
        (getattr(column, method) for method in AS_LISTS if hasattr(column, method)), None
    )
    if to_list is not None:
        listed = to_list()
    elif isinstance(column, Iterable) and not isinstance(
        column, str | bytes | bytearray | Mapping | Set
    ):
        listed = list(column)
    if not isinstance(listed, list):
        raise RefusedError(f"returned a {type(column).__name__}: return one number per response")
    return listed


def _float(row: int, value: Any) -> float:
    """Return a number of any type as a float.

    Raises RefusedError for anything else, including text, which is never parsed.
    """
    shape, kind = getattr(value, "shape", ()), getattr(getattr(value, "dtype", None), "kind", "")
    is_number = (
        not isinstance(value, str | bytes | bytearray)
        and tuple(shape) == ()
        and kind not in tuple(UNREAL)
    )
    try:
        if is_number:
            return float(value)
    except Exception:
        # a user's own number type may raise anything; the value is named below
        pass
    raise RefusedError(f"returned {_quoted(value)}", row)


def _quoted(value: object, length: int = 60) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:
        # an integer of thousands of digits, or an object whose repr fails
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _said(error: BaseException) -> str:
    """Return the exception's name and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ").encode(errors="replace").decode()


def _place(error: BaseException) -> tuple[str, int | None] | None:
    """Return the file and line where the user's code failed.

    It is the innermost frame in that code. Frames of installed packages and of Python itself do not
    count.
    """
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [
        (file, line)
        for file, line in frames
        if file != __file__ and not file.startswith(("<", sysconfig.get_path("stdlib")))
    ]
    own = [
        (file, line)
        for file, line in own
        if not {"site-packages", "dist-packages"} & set(Path(file).parts)
    ]
    return own[-1] if own else None


if __name__ == "__main__":
    main(int(sys.argv[1]))
