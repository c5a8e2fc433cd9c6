"""Scheduled distillation: the flow as a Prefect deployment served from here.

Each due run continues the run by one iteration: an iteration that was begun and not finished is the
next one, and its finished stages come from the cache. A run that comes due during another is
refused by the run's lock.

What runs is decided here. The config goes from this process to the flow runs, which are its
children, and never through Prefect's server: nothing that is written there, whether parameters, an
entrypoint, pull steps or job variables, can name code, paths or interpreters. A flow run may ask
for more iterations, and for nothing else.
"""

import asyncio
import hashlib
import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any, Final, NoReturn

import httpx
import prefect.settings
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.runner import Runner
from prefect.settings import temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.types.entrypoint import EntrypointType
from pydantic import Field

from flows.api import VARIABLE, of_another_server, refuse_strange_proxies, require_url
from flows.distill import distill
from flows.schedules import Schedule
from flows.server import EmbeddedServer
from tasks.progress import Terminal
from tasks.run import open_run, refuse_wrong_checks
from wind.audit.changes import setting_changes
from wind.config.recipe import DistillConfig
from wind.errors import GateError, StageError
from wind.gates import variants
from wind.machine.environment import variables
from wind.store.datasets import Store
from wind.store.roots import storage_for
from wind.store.versions import Versions

SECONDS_BETWEEN_TRIES = 3.0
SECONDS_BETWEEN_POLLS = 2
# of one flow run
MOST_ITERATIONS: Final = 100
# the runner's own would answer anybody
NO_OTHER_SERVER: Final = {"PREFECT_RUNNER_SERVER_ENABLE": "false"}
Iterations = Annotated[
    int, Field(ge=1, le=MOST_ITERATIONS, description="how many iterations to continue the run by")
]


def continued_by(config: DistillConfig) -> Flow[..., Any]:
    """Return the flow that continues the run of `config`.

    A flow run cannot change the config; the message of its state names the version.
    """

    @flow(
        name="continue",
        flow_run_name=f"continue {config.run}",
        persist_result=False,
        validate_parameters=False,
        on_crashed=[name_unknown_parameters],
    )
    def continue_run(iterations: Iterations = 1) -> State[Any]:
        if type(iterations) is not int or not 1 <= iterations <= MOST_ITERATIONS:
            return Failed(
                message=f"refused: iterations is {iterations!r}, "
                f"not a number from 1 to {MOST_ITERATIONS}"
            )
        return continue_run_of(config, iterations)

    return continue_run


async def name_unknown_parameters(
    flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]
) -> None:
    """Fail a flow run that names unknown parameters, and say which.

    Prefect does not call a flow with such parameters: the process of the flow run ends, and its
    state says no more than that.
    """
    unknown = sorted(flow_run.parameters.keys() - flow.parameters.properties.keys())
    if not unknown:
        return
    known = ", ".join(flow.parameters.properties)
    refused: State[Any] = Failed(
        message=f"refused: {', '.join(map(repr, unknown))}: "
        f"a flow run may say {known}, and nothing else"
    )
    async with get_client() as client:
        # a crash is final: no other state may follow it unless forced
        await client.set_flow_run_state(flow_run.id, refused, force=True)


def continue_run_of(config: DistillConfig, iterations: int) -> State[Any]:
    """Compute further iterations of the run, and return the resulting state."""
    # it was meant for this process: what a reward starts must find its modules as usual
    os.environ.pop("PYTHONSAFEPATH", None)
    try:
        with open_run(config, quiet=True) as here:
            target = finished_iterations(here.config) + iterations
            base = Versions(here.store, here.config.run).base()
            version = distill(here.config.model_copy(update={"iterations": target}), base)[-1]
    except GateError as error:
        return Failed(message=f"stopped: {error}")
    except StageError as error:
        if "is going on" in str(error):
            return Cancelled(message=f"refused: {error}")
        raise
    return Completed(message=f"{version.run}@{version.number} {version.id}")


def finished_iterations(config: DistillConfig) -> int:
    """Return the number of published iterations of this recipe.

    Those after a rollback have a smaller learning rate, and count as well.
    """
    versions = Versions(Store(config.root), config.run)
    wanted = [(each.recipe(), each.defaults()) for each in variants(config)]
    base = versions.base()
    begun = base.content.iteration if base else 0
    recorded = (version.content for version in versions)
    same = (
        each.iteration
        for each in recorded
        if not all(
            any(setting_changes((each.recipe, each.defaults), variant)) for variant in wanted
        )
    )
    return max(same, default=begun)


def serve_forever(schedule: Schedule) -> None:
    """Continue the run on a schedule, through outages of the Prefect server.

    Uses the server at PREFECT_API_URL if that is set, otherwise an embedded one with its UI, which
    is restarted when it dies.
    """
    refuse_wrong_checks(schedule.config)
    storage = storage_for(schedule.config.root)
    schedule = schedule.model_copy(
        update={"config": schedule.config.model_copy(update={"root": storage.address})}
    )
    refuse_strange_proxies()
    if url := os.environ.get(VARIABLE, ""):
        # one that does not answer yet is waited for
        require_url(url)
        with variables(of_another_server(url)):
            _serve_again_and_again(schedule, url.removesuffix("/api"), None)
    server = EmbeddedServer(storage.local.absolute() / "prefect", port=schedule.port, services=True)
    reached = {**server.variables, **NO_OTHER_SERVER}
    try:
        # The variables are for the flow runs, which are separate processes.
        with (
            variables({**of_another_server(None), **reached}),
            temporary_settings(
                {getattr(prefect.settings, name): value for name, value in reached.items()}
            ),
        ):
            _serve_again_and_again(schedule, server.page, server)
    finally:
        server.stop()


def _serve_again_and_again(
    schedule: Schedule, page: str, server: EmbeddedServer | None
) -> NoReturn:
    """Serve, and try again whenever Prefect's server was away.

    `server` is our own, which is started if need be; None for somebody else's.
    """
    terminal = Terminal()
    while True:
        if server is not None and not server.alive():
            server.start()
            server.wait()
        terminal.line(f"serving {schedule.config.run} at {page}; stop with Ctrl-C")
        # A missing server ends the runner with one of these: it is restarted until the server is
        # back.
        with suppress(httpx.HTTPError, RuntimeError, ExceptionGroup):
            asyncio.run(_serve(schedule))
        terminal.line(
            f"the Prefect server at {page.partition('?')[0]} does not answer; trying again"
        )
        time.sleep(SECONDS_BETWEEN_TRIES)


async def _serve(schedule: Schedule) -> None:
    """Serve the deployment until the server goes away."""
    config = schedule.config
    async with get_client() as client:
        await client.hello()
    runner = Runner(name=config.run, query_seconds=SECONDS_BETWEEN_POLLS, pause_on_shutdown=False)
    # Given the flow itself, the runner asks the server only when to run, how many iterations, and
    # whether to stop.
    await runner.aadd_flow(
        continued_by(config),
        name=config.run,
        cron=schedule.cron,
        interval=timedelta(seconds=schedule.interval) if schedule.interval else None,
        parameters={"iterations": 1},
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=f"Continue {config.run}, whose config a flow run cannot change: "
        f"{_digest(config)}.",
        tags=["wind"],
    )
    await runner.start()


def _digest(config: DistillConfig) -> str:
    return f"sha256:{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]}"
