"""Scheduled distillation: the flow as a Prefect deployment, served from this process.

Each due run continues the run by one iteration: an iteration that was begun and not finished is the next one, and its finished
stages come from the cache. A run that comes due while another is going on is refused by the run's lock.
"""

import asyncio
import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled
from prefect.types.entrypoint import EntrypointType

from flows.api import VARIABLE, of_another_server, refuse_strange_proxies, require_url
from flows.distill import distill
from flows.schedules import Schedule
from flows.server import EmbeddedServer
from tasks.progress import Terminal
from tasks.running import refuse_wrong_checks, start
from tasks.versions import recipe
from wind.config import DistillConfig
from wind.datasets import Store
from wind.environment import variables
from wind.errors import StageError
from wind.storage import storage_for
from wind.versions import Versions

SECONDS_BETWEEN_TRIES = 3.0
SECONDS_BETWEEN_POLLS = 2


@flow(name="continue", flow_run_name="continue {config.run}", persist_result=False)
def continue_run(config: DistillConfig) -> Any:
    """One more iteration of the run that `config` describes; the state's message names the version."""
    os.environ.pop("PYTHONSAFEPATH", None)  # was for this process: what a reward starts is to find its modules as ever
    try:
        with start(config, quiet=True) as here:
            target = finished_iterations(here.config) + 1
            base = Versions(here.store, here.config.run).base()
            version = distill(here.config.model_copy(update={"iterations": target}), base)[-1]
    except StageError as error:
        if "is going on" in str(error):
            return Cancelled(message=f"refused: {error}")
        raise
    return f"{version.run}@{version.number} {version.id}"


def finished_iterations(config: DistillConfig) -> int:
    """How many iterations of this recipe the run has published."""
    versions = Versions(Store(config.root), config.run)
    wanted = recipe(config)
    base = versions.base()
    begun = base.content.iteration if base else 0
    return max((version.content.iteration for version in versions if version.content.recipe == wanted), default=begun)


def serve_forever(schedule: Schedule) -> None:
    """Serve `continue_run` on a schedule, through outages of the Prefect server.

    With PREFECT_API_URL set, against that server; otherwise against an embedded one with its UI, restarted when it dies.
    """
    refuse_wrong_checks(schedule.config)
    storage = storage_for(schedule.config.root)
    schedule = schedule.model_copy(update={"config": schedule.config.model_copy(update={"root": storage.address})})
    terminal = Terminal()
    refuse_strange_proxies()
    server = None
    api = url = os.environ.get(VARIABLE, "")
    if url:
        require_url(url)  # one that does not answer yet is waited for
    else:
        server = EmbeddedServer(storage.local.absolute() / "prefect", port=schedule.port, services=True)
        api = server.url
    try:
        # The variable is for the flow runs, which are processes of their own.
        with variables({**of_another_server(url), VARIABLE: api}), temporary_settings({PREFECT_API_URL: api}):
            while True:
                if server is not None and not server.alive():
                    server.start()
                    server.wait()
                terminal.line(f"serving {schedule.config.run} at {api.removesuffix('/api')}; stop with Ctrl-C")
                # A server that is away ends the runner with one of these: it is started again until the server is back.
                with suppress(httpx.HTTPError, RuntimeError, ExceptionGroup):
                    asyncio.run(_serve(schedule))
                terminal.line(f"the Prefect server at {api} does not answer; trying again")
                time.sleep(SECONDS_BETWEEN_TRIES)
    finally:
        if server is not None:
            server.stop()


async def _serve(schedule: Schedule) -> None:
    """Register the deployment and run what comes due, until the server goes away."""
    config = schedule.config
    async with get_client() as client:
        await client.hello()
    runner = Runner(name=config.run, query_seconds=SECONDS_BETWEEN_POLLS, pause_on_shutdown=False)
    deployment = await continue_run.ato_deployment(
        name=config.run,
        cron=schedule.cron,
        interval=timedelta(seconds=schedule.interval) if schedule.interval else None,
        parameters={"config": config.model_dump(mode="json")},
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=f"Continue {config.run} by one iteration.",
        tags=["wind"],
    )
    await runner.aadd_deployment(deployment)
    await runner.start()
