"""A served schedule against a real Prefect server, through deaths of the server, of the command and
of the serving process.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    temporary_settings,
)

from flows.server import QUIET, EmbeddedServer
from wind.config.recipe import DistillConfig
from wind.machine import processes
from wind.store.datasets import Store
from wind.store.versions import Versions

pytestmark = pytest.mark.slow

SECONDS = 600
SECONDS_TO_DIE = 10.0
MARK = "SERVED_BY_TEST"


def wait_for(iterations: int, serving: processes.Process) -> list[int]:
    """The iterations published once there are that many, in order of publishing."""
    deadline = time.monotonic() + SECONDS
    published: list[int] = []
    while len(published) < iterations and time.monotonic() < deadline:
        assert serving.poll() is None
        published = [version.content.iteration for version in Versions(Store("store"), "tiny")]
        time.sleep(0.5)
    return published


@contextmanager
def served(
    tmp_path: Path, *, server: Mapping[str, str], interval: float
) -> Iterator[processes.Process]:
    """`wind serve` for the block; Prefect's runner has a temporary folder of its own, which a
    killed one leaves.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, **QUIET, **server, MARK: str(tmp_path), "TMPDIR": str(temporary)}
    environment["PYTHONPATH"] = str(processes.SOURCE)
    command = processes.python(
        "-m", "flows.cli", "serve", "tiny.yaml", "--interval", str(interval), "--port", "0"
    )
    log = tmp_path / "serve.log"
    with log.open("ab") as file:
        serving = processes.start(command, env=environment, stdout=file, stderr=file)
    try:
        yield serving
    finally:
        serving.end()


def started(mark: str) -> dict[int, str]:
    """The commands of all processes that the served schedules of this test have started, by process
    id.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


def engine_of(mark: str) -> int:
    """The process id of a flow run that has just begun to start."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for number, command in started(mark).items():
            if "multiprocessing.spawn" in command:
                return number
        time.sleep(0.01)
    raise AssertionError("no flow run was started")


def assert_ended(mark: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (left := started(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == {}


@pytest.mark.usefixtures("finished_recipe")
def test_each_due_run_is_one_more_iteration(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "prefect", services=True)
    server.start()
    server.wait()
    try:
        with served(tmp_path, server=server.variables, interval=40) as serving:
            assert wait_for(2, serving) == [1, 2]
            server.stop()
            time.sleep(5)
            server.start()
            server.wait()
            assert wait_for(3, serving)[:3] == [1, 2, 3]
    finally:
        server.stop()
    assert_ended(str(tmp_path))


def test_nothing_outlives_a_command_killed_while_a_flow_run_starts(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    """At any moment of its start, with the server dying not at all, after or before."""
    recipe()
    moments = random.Random(0)
    server = EmbeddedServer(tmp_path / "prefect", services=True)
    try:
        for server_dies in ("never", "after", "before"):
            if not server.alive():
                server.start()
                server.wait()
            with served(tmp_path, server=server.variables, interval=2) as serving:
                engine_of(str(tmp_path))
                if server_dies == "before":
                    time.sleep(moments.uniform(0, 3))
                    server.stop()
                time.sleep(moments.uniform(0, 3))
                serving.send_signal(signal.SIGKILL)
            if server_dies == "after":
                server.stop()
            assert_ended(str(tmp_path))
    finally:
        server.stop()


def test_a_serving_process_that_dies_ends_its_flow_runs_and_the_command(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    recipe()
    with served(tmp_path, server={}, interval=1) as serving:
        engine_of(str(tmp_path))
        commands = {
            number: command
            for number, command in started(str(tmp_path)).items()
            if "lifeline" not in command
        }
        [runner] = [
            number
            for number, command in commands.items()
            if command.endswith("flows.cli serve-forever")
        ]
        os.kill(runner, signal.SIGKILL)
        assert serving.wait(SECONDS_TO_DIE) == 1
    assert (
        "the process that served tiny was killed by SIGKILL" in (tmp_path / "serve.log").read_text()
    )
    assert_ended(str(tmp_path))


def test_a_flow_run_changes_the_number_of_iterations_and_nothing_else(
    recipe: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    """Whoever may write to Prefect's server, and be it with the secret, cannot have this process
    run anything else.
    """
    spawned = {
        **recipe().model_dump(mode="json"),
        "reward": {"kind": "rule", "function": "os:mkdir"},
    }
    proof = tmp_path / "ran"
    shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {proof}"}}
    with served(tmp_path, server={}, interval=3600) as serving:
        url, secret = printed(tmp_path / "serve.log", serving)
        settings = {
            PREFECT_API_URL: f"{url}/api",
            PREFECT_API_AUTH_STRING: secret,
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: True,
        }
        with temporary_settings(settings), get_client(sync_client=True) as client:
            deployment = deployed(client)
            assert deployment.parameters == {"iterations": 1}
            assert str(tmp_path) not in deployment.model_dump_json()
            assert secret not in deployment.model_dump_json()
            for wrong in (0, 101, "1", True, 1.5, None):
                with pytest.raises(PrefectHTTPStatusError, match="409 Conflict"):
                    client.create_flow_run_from_deployment(
                        deployment.id, parameters={"iterations": wrong}
                    )
            raw = {
                "flow_id": str(deployment.flow_id),
                "deployment_id": str(deployment.id),
                "state": {"type": "SCHEDULED"},
            }
            refused = [
                created(client, {**raw, "parameters": parameters})
                for parameters in (
                    {"iterations": 1, "x\ny": 1, "config": spawned},
                    {"iterations": 101},
                )
            ]
            changes = {
                "entrypoint": "os:abort",
                "pull_steps": [shell],
                "job_variables": {
                    "env": {"WIND_ROOT": str(proof), "PYTHONPATH": str(proof)},
                    "command": f"touch {proof}",
                },
            }
            client.request(
                "PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json=changes
            ).raise_for_status()
            told = created(
                client,
                {**raw, "parameters": {"iterations": 2}, "job_variables": changes["job_variables"]},
            )
            assert wait_for(2, serving) == [1, 2]
            assert (
                ended(client, told).message
                == "tiny@2 " + list(Versions(Store("store"), "tiny"))[1].id
            )
            assert (
                said(client, refused[0])
                == "refused: 'config', 'x\\ny': a flow run may say iterations, and nothing else"
            )
            assert (
                said(client, refused[1]) == "refused: iterations is 101, not a number from 1 to 100"
            )
    assert not proof.exists()
    files = [path for path in Path("store").rglob("*") if path.is_file() and path.name != "secret"]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def printed(log: Path, serving: processes.Process) -> tuple[str, str]:
    """The URL that `wind serve` prints, and the secret in it."""
    deadline = time.monotonic() + SECONDS
    while not (
        found := re.search(
            r"^serving tiny at (http://127.0.0.1:\d+)/\?secret=(\S+); stop with",
            log.read_text(),
            re.M,
        )
    ):
        assert serving.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found[1], found[2]


def deployed(client: SyncPrefectClient) -> DeploymentResponse:
    """The deployment, once there is one."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return client.read_deployment_by_name("continue/tiny")
        except ObjectNotFound:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def created(client: SyncPrefectClient, body: dict[str, Any]) -> UUID:
    """A flow run made past what the deployment says of its parameters."""
    answer = client.request("POST", "/flow_runs/", json=body)
    return UUID(answer.raise_for_status().json()["id"])


def ended(client: SyncPrefectClient, number: UUID) -> State[Any]:
    """The last state of a flow run."""
    deadline = time.monotonic() + SECONDS
    while (state := client.read_flow_run(number).state) is None or not state.is_final():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return state


def said(client: SyncPrefectClient, number: UUID) -> str | None:
    """What a flow run that failed says; one that Prefect has found crashed is told why a moment
    later.
    """
    deadline = time.monotonic() + SECONDS
    while (state := ended(client, number)).type == StateType.CRASHED:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return state.message
