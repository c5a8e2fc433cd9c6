"""Serve schedules in a process that leaves none behind.

Prefect's runner starts each flow run as a process that imports for seconds before it runs any of
our code. So the runner, and with it the embedded server, is in a process under keepers: everything
started there ends with it, or with the command.
"""

import subprocess

from pydantic import BaseModel

from wind.config.recipe import DistillConfig
from wind.errors import StageError, killed_by
from wind.machine import processes


class Schedule(BaseModel):
    """A recipe to serve, due by either `cron` or `interval`."""

    config: DistillConfig
    cron: str | None
    interval: float | None  # seconds
    # of the embedded server; 0 for any free one
    port: int


def serve_kept(schedule: Schedule) -> int:
    """Run `wind serve-forever` for `schedule`, and return its exit code.

    Raises StageError if it was killed.
    """
    # Prefect starts the flow runs as Python processes, which must not import modules from the
    # current folder either.
    environment = processes.environment(PYTHONSAFEPATH="1")
    command = processes.python("-m", "flows.cli", "serve-forever")
    serving = processes.start(command, env=environment, stdin=subprocess.PIPE, descendants=True)
    try:
        serving.communicate(schedule.model_dump_json().encode())
    finally:
        serving.end()
    if serving.returncode < 0:
        how = killed_by(-serving.returncode)
        raise StageError(
            f"the process that served {schedule.config.run} {how}; serve again to continue"
        )
    return serving.returncode
