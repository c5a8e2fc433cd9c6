"""The host of a user's function: a process of its own, where the function can change nothing of
ours.

`wind.rewards.hosts` runs this file as a plain script, with the descriptor of a socket on which it
gets a line of JSON and answers with one:

    {"load": "module:function"}
        {"loaded": true}, or {"type": "int"} for what is no function
    {"prompts": [...], "responses": [...], "answers": [...]}
        {"columns": {"": {"values": [0.5, ...]}}}

or with `raised`, what the user's code raised and where. With every answer comes what that code has
used so far as `observed`, see `wind.code.observing`. The columns are those of a mapping; a bare
sequence has no name. One that is not numbers has, in place of its values, the `problem` and the
`row`, None for that of no single one. The user's code runs on the main thread, and no other is
alive unless it starts one; standard input is empty and what is printed goes to a log. This file
imports nothing of ours but where the user's modules are and what observes them, and no package.
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

AS_LISTS = ("tolist", "to_list", "to_pylist")  # of NumPy, torch and pandas; of polars; of pyarrow
# kinds of a NumPy scalar that `float` takes and that are no real number: times and complex numbers
UNREAL = "mMc"


class RefusedError(Exception):
    """What the function returned is not numbers: what there is, and in which row."""

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem)
        self.row = row


class Host:
    """A user's function, and the loop its coroutines run in."""

    def __init__(self) -> None:
        self._function: Any = None
        self._observer = Observer()
        # one for all calls: a client that a module keeps belongs to the loop it began in
        self._runner = asyncio.Runner()

    def load(self, name: str) -> dict[str, Any]:
        """Import the function called `name`, and say whether it is one."""
        module, _, attribute = name.partition(":")
        self._observer.begin(module.partition(".")[0])
        self._function = getattr(importlib.import_module(module), attribute)
        return (
            {"loaded": True}
            if callable(self._function)
            else {"type": type(self._function).__name__}
        )

    def observed(self) -> dict[str, Any]:
        """What the user's code has used so far."""
        return self._observer.report()

    def call(
        self, prompts: list[str], responses: list[str], answers: list[str | None]
    ) -> dict[str, Any]:
        """What the function returns for one batch, as columns of floats."""
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
    # Whoever is forked, such as a pool's worker, may live longer and must not be taken for this
    # process.
    os.register_at_fork(after_in_child=lambda: os.close(descriptor))
    use_user_path()
    # for what the user starts, as the command was given
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
    """What `compute` returns, or what the user's code raised in it."""
    ours = os.getpid()
    answer, error = {}, None
    try:
        answer = compute()
    except BaseException as raised:  # a user's function may raise anything, `sys.exit` included
        error = raised
    if os.getpid() != ours:
        _end_fork(error)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        # an alarm that was left on would end this process while it waits
        signal.setitimer(timer, 0)
    if error is not None:
        traceback.print_exception(error)
        return {"raised": {"said": _said(error), "place": _place(error)}}
    return answer


def _end_fork(error: BaseException | None) -> None:
    """End a process that the user's code forked and that came back from it: the one that forked it
    answers.
    """
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    os._exit(code if isinstance(code, int) else int(code is not None))


def _has_awaitables(returned: Any) -> bool:
    each = returned if isinstance(returned, list | tuple) else [returned]
    return any(map(inspect.isawaitable, each))


async def _awaited(returned: Any) -> Any:
    """What `returned` is once it is there: one that is awaited, or a list with some, all at once."""
    if inspect.isawaitable(returned):
        returned = await returned
    if not _has_awaitables(returned):
        return returned

    async def one(value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    return await asyncio.gather(*map(one, returned))


def _named(returned: Any) -> dict[str, Any]:
    """The columns of a mapping, of a data frame, or of a list of mappings with the same names; else
    one without a name.
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
    """The `count` values of a column, or what is wrong with it."""
    try:
        listed = _listed(column)
        if len(listed) != count:
            raise RefusedError(
                f"returned {len(listed)} values for {count} responses: return one per response, in order"
            )
        return {"values": [_float(row, value) for row, value in enumerate(listed)]}
    except RefusedError as error:
        return {"problem": str(error), "row": error.row}


def _listed(column: Any) -> list[Any]:
    """The values of a column in order, whatever holds them. Raises RefusedError for what has no
    order, or is one value.
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
    """A number of any kind as a float. Raises RefusedError for a text, which is never read as a
    number, and for all else.
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
    except Exception:  # a number of the user's own may raise anything; it is named below
        pass
    raise RefusedError(f"returned {_quoted(value)}", row)


def _quoted(value: object, length: int = 60) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of thousands of digits, or an object that cannot be shown
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _said(error: BaseException) -> str:
    """The exception's name and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ").encode(errors="replace").decode()


def _place(error: BaseException) -> tuple[str, int | None] | None:
    """The file and line of the innermost frame that is the user's: neither an installed package's
    nor Python's own.
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
