"""Iterative best-of-N distillation as reproducible dataset versions.

Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 the run failed, 2 bad config or arguments, 3 a data check blocked the run,
4 an iteration did not pass a gate.
"""

import logging
import sys
from typing import Any

import typer
from pydantic import ValidationError

from flows.commands import (
    auditing,
    checking,
    doctor,
    init,
    keeping,
    looking,
    moving,
    reporting,
    runs,
    signing,
    studies,
)
from wind.errors import OUT_OF_MEMORY, WindError
from wind.files import NotPlainError
from wind.machine.environment import direct, variables
from wind.machine.terminal import complain, guard
from wind.redaction import redacted

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
for module in (
    init,
    runs,
    studies,
    looking,
    reporting,
    auditing,
    checking,
    doctor,
    keeping,
    moving,
    signing,
):
    app.add_typer(module.commands)

# typer turns a KeyboardInterrupt into this code without a message
INTERRUPTED = 130
# typer bundles its own click, and does not export this name
USAGE_ERROR: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line.

    A user's mistake is one line on standard error, never a traceback.
    """
    # a log record that cannot be sent must not interfere with the command's output
    logging.raiseExceptions = False
    guard()
    try:
        with variables(direct()):
            if (code := app(standalone_mode=False) or 0) == INTERRUPTED:
                raise KeyboardInterrupt
            sys.exit(code)
    except WindError as error:
        _fail(str(error), error.exit_code)
    except USAGE_ERROR as error:
        _fail(error.format_message(), 2)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except ValidationError as error:
        # only Prefect's titles end like this, when its settings are read on import
        if not error.title.endswith("Settings"):
            raise
        _fail(_refused_settings(error), 2)
    except NotPlainError as error:
        _fail(str(error), 2)
    except MemoryError:
        _fail(OUT_OF_MEMORY, 1)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _fail(
            f"{error.strerror or error}{place}; "
            "free space or permissions, then rerun: finished shards are kept",
            1,
        )
    except KeyboardInterrupt:
        _fail("interrupted; rerun to resume from the finished shards", INTERRUPTED)


def _refused_settings(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return (
        f"Prefect's {error.title} refuse {name} {first['input']!r} ({first['msg']}): correct it in "
        "a variable that begins with PREFECT_, a .env or a prefect.toml in this folder, "
        "or a Prefect profile"
    )


def _fail(message: str, code: int) -> None:
    complain(f"error: {redacted(' '.join(message.split()))}")
    sys.exit(code)


if __name__ == "__main__":
    main()
