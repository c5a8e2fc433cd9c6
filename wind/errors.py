"""Everything that this project raises on purpose.

    WindError
    ├── ConfigError      exit 2   a config, an argument, or a path it names, is wrong
    ├── InputError       exit 1   an input's content is wrong: a prompt row, a reward, a model
    ├── DatasetError     exit 1   a stored dataset or model is missing, damaged or unfit
    ├── DataCheckError   exit 3   a data check blocked the run
    ├── GateError        exit 4   an iteration did not pass a gate that stops the run
    ├── StageError       exit 1   a stage's process failed, or another run is in the way
    └── TrainingError    exit 1   training diverged or its export did not verify

Each message is one line that says what is wrong, where, and what to do; secrets are removed from
it. All are picklable: their whole state is one string.
"""

import signal
from typing import Any, ClassVar, Final

from pydantic import ValidationError

from wind.redaction import redacted

OUT_OF_MEMORY: Final = (
    "out of memory: lower inference.batch_tokens, training.micro_prompts or workers.processes, "
    "then rerun"
)
# characters of a line from another library
LONGEST: Final = 400


class WindError(Exception):
    """Root of the project's errors; `exit_code` is the command line's exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class ConfigError(WindError, ValueError):
    """A config, an argument, or a path named in one is wrong."""

    exit_code = 2


class InputError(WindError, ValueError):
    """An input is wrong: a prompt row, a reward, a model."""


class DatasetError(WindError, ValueError):
    """A stored dataset or model is missing, damaged or unfit."""


class DataCheckError(WindError, ValueError):
    """A data check failed.

    The dataset stays for inspection, and nothing downstream runs.
    """

    exit_code = 3


class GateError(WindError, ValueError):
    """An iteration did not pass a gate, and the run goes on from nowhere.

    Its version stays: it is data like any other.
    """

    exit_code = 4


class StageError(WindError, RuntimeError):
    """A stage's process failed, or another run holds what this one needs."""


class TrainingError(WindError, RuntimeError):
    """Training diverged, or the exported model does not equal the trained one."""


def by_name(name: str, message: str) -> WindError:
    """Return the error of class `name` with `message`.

    This is how an error crosses from a worker process to its parent.
    """
    kinds = {kind.__name__: kind for kind in WindError.__subclasses__()}
    return kinds.get(name, StageError)(message)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name.

    If a value does not fit a pydantic model, this is the field and what is wrong with it.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        said = ": ".join(
            filter(
                None, [".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")]
            )
        )
    else:
        said = str(error)
    line = (said.strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def shown(value: Any, length: int = 60) -> str:
    """Return a value for a message, in at most `length` characters."""
    try:
        text = "empty" if value is None else repr(value)
    # an integer of thousands of digits
    except ValueError:
        text = "a number too long to print"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def killed_by(signum: int) -> str:
    """Describe how a process ended by signal `signum`, with the likely reason."""
    reason = ", as the system does when memory runs out" if signum == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(signum).name}{reason}"
