"""Schedules, served in a process that leaves none behind.

Prefect's runner starts each flow run as a process, which imports for seconds before anything of
ours runs in it. So the runner, and the embedded server with it, are in a process under keepers: all
that was started there ends with it, or with the command.
"""

import subprocess

from pydantic import BaseModel

from wind.config.recipe import DistillConfig
from wind.errors import StageError, killed_by
from wind.machine import processes


class Schedule(BaseModel):
    """What to serve and when it is due, by either `cron` or `interval`."""

    config: DistillConfig
    cron: str | None
    interval: float | None  # seconds
    port: int  # of the embedded server; 0 for any


def serve_kept(schedule: Schedule) -> int:
    """The exit code of `wind serve-forever` for `schedule`. Raises StageError if it was killed."""
    # The flow runs are Pythons that Prefect starts: they, too, are to take no module from the
    # current folder.
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
            f"the process that served {schedule.config.run} {how}; serve again to go on"
        )
    return serving.returncode
