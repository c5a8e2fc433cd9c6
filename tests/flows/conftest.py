"""Flows on real components: a Prefect server for all tests, and a recipe small enough to run in
seconds.
"""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml
from prefect.settings import temporary_settings

import tasks.run
from flows import cli
from flows.distill import distill
from flows.server import EmbeddedServer
from tasks.run import keep_config, open_run
from tasks.workers import Pool
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.config.runs import WorkersConfig
from wind.files import lock
from wind.store.versions import Version

REWARD = '''"""A rule reward: digits are good, and more of them are better."""


def digits(prompts, responses, answers):
    return [float(sum(character.isdigit() for character in response)) for response in responses]
'''


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def prefect_variables(shared: Path) -> Iterator[dict[str, str]]:
    """What reaches a real Prefect server on loopback, one for all test processes: the first starts
    it, and waits for the rest.
    """
    said = shared / "prefect.json"
    with (shared / "prefect.users").open("wb") as users, ExitStack() as server:
        with lock(shared / "prefect.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            if not said.exists():
                started = EmbeddedServer(shared / "prefect")
                started.start()
                server.callback(started.stop)
                started.wait()
                server.callback(fcntl.flock, users, fcntl.LOCK_EX)
                said.write_text(json.dumps(started.variables))
        yield json.loads(said.read_text())


@contextlib.contextmanager
def reached(server: Mapping[str, str], home: Path) -> Iterator[None]:
    """For the block, Prefect in this process and in its children reaches the server that these
    variables say.
    """
    # Prefect read its settings when it was imported, before there was a server.
    settings = {getattr(prefect.settings, name): value for name, value in server.items()}
    with pytest.MonkeyPatch.context() as environment, temporary_settings(settings):
        for name, value in {**server, "PREFECT_HOME": str(home)}.items():
            environment.setenv(name, value)
        yield


@pytest.fixture
def prefect_server(prefect_variables: dict[str, str], shared: Path) -> Iterator[dict[str, str]]:
    """The variables that reach that server, which is the one that Prefect reaches during the test."""
    with reached(prefect_variables, shared / "prefect"):
        yield prefect_variables


Recipe = Callable[..., DistillConfig]


def write_recipe(folder: Path, model: Path) -> Path:
    """The YAML file of a tiny run in `folder`, with its prompts and its reward beside it."""
    rows = [
        {"prompt": f"{first}+{second}=", "answer": str(first + second)}
        for first in range(5)
        for second in range(4)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny_reward.py").write_text(REWARD)
    config: dict[str, Any] = {
        "run": "tiny",
        "policy": {"path": str(model)},
        "prompts": {"source": "prompts.jsonl", "eval_fraction": 0.3},
        "reward": {"kind": "rule", "function": "tiny_reward:digits"},
        "iterations": 1,
        "sampling": {
            "backend": "transformers",
            "samples_per_prompt": 4,
            "max_new_tokens": 6,
            "shard_prompts": 6,
        },
        "training": {"batch_prompts": 4, "micro_prompts": 4, "lr": 1e-3, "zero_stage": 0},
        "evaluation": {"samples_per_prompt": 2, "bootstrap_samples": 100},
        "checks": {"max_empty_share": 1.0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def finished(prefect_variables: dict[str, str], tiny_model: Path, pool: Pool, shared: Path) -> Path:
    """The store of the tiny run after its one iteration, made once for all test processes; tests
    work on copies.
    """
    folder = shared / "finished"
    folder.mkdir(exist_ok=True)
    with lock(folder / "lock"):
        if not (folder / "complete").exists():
            path = write_recipe(folder, tiny_model)
            with (
                reached(prefect_variables, shared / "prefect"),
                contextlib.chdir(folder),
                open_run(load_config(path, []), quiet=True, pool=pool) as here,
            ):
                keep_config(here.store, load_config(path, []))
                distill(here.config)
            (folder / "complete").touch()
    return folder / "store"


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A function from overrides to the config of a tiny run; its YAML file lies in the current
    folder.
    """
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, tiny_model)

    def load(*overrides: str) -> DistillConfig:
        return load_config(Path("tiny.yaml"), overrides)

    return load


@pytest.fixture
def finished_recipe(recipe: Recipe, finished: Path) -> Recipe:
    """`recipe`, its run already finished in the store in the current folder."""
    shutil.copytree(finished, "store")
    return recipe


class WarmPool(Pool):
    """Workers that outlive the run: starting one takes longer than all of a tiny run."""

    def close(self) -> None:
        return


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Warm workers for all tests of this process."""
    pool = WarmPool(WorkersConfig(), "cpu", tmp_path_factory.mktemp("logs"))
    yield pool
    Pool.close(pool)


@pytest.fixture
def warm_workers(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs that the test makes in this process share their workers, as the stages of one run
    do.
    """
    monkeypatch.setattr(tasks.run, "Pool", lambda *arguments: pool)


@pytest.fixture
def own_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All runs that the test makes in this process share workers that know its folder and its
    environment.
    """
    pool = WarmPool(WorkersConfig(), "cpu", tmp_path / "logs")
    monkeypatch.setattr(tasks.run, "Pool", lambda *arguments: pool)
    yield
    Pool.close(pool)


Wind = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Wind:
    """Run the command line in this process; returns its exit code, standard output, and standard
    error. If the test fails, its report shows them.
    """

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wind", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        request.node.add_report_section("call", shlex.join(["wind", *arguments]), "".join(printed))
        assert "Traceback" not in printed.err
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def wind(recipe: Recipe, command: Wind) -> Wind:
    """`command` with a recipe in the current folder; of standard error it returns the last line."""
    recipe()

    def run(*arguments: str) -> tuple[int, str, str]:
        code, out, err = command(*arguments)
        return code, out, err.splitlines()[-1] if err else ""

    return run


@pytest.fixture
def versions(
    demo_versions: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Version]:
    """The versions of a store made by hand in the current folder."""
    monkeypatch.chdir(tmp_path)
    return demo_versions
