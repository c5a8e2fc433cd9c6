"""What the commands share: their options, and a Prefect API."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.server import prefect_api
from wind.config import DistillConfig, load_config
from wind.datasets import Store
from wind.errors import ConfigError
from wind.histories import find_prompt
from wind.lineage import Lineage, of_handle, of_prompt, of_version
from wind.reading import named
from wind.storage import storage_for
from wind.versions import Version, find

Config = Annotated[Path, typer.Argument(help="a YAML file, such as configs/demo.yaml")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="override a field: --set training.lr=1e-6")]
Iterations = Annotated[int | None, typer.Option(min=1, help="how many iterations, in place of the config's")]
From = Annotated[str | None, typer.Option("--from", metavar="VERSION", help="the version to continue, in place of the beginning")]
Root = Annotated[str, typer.Option(envvar="WIND_ROOT", help="the store")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]

PROMPT_ID = re.compile(r"^[0-9a-f]{1,32}$")
SECONDS_TO_DRAIN = 5.0
QUIET = {  # Prefect's and Great Expectations' own voices; a run speaks for itself, and reports to nobody
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def prefect(root: str) -> Iterator[None]:
    """A Prefect API for the block; Prefect itself is imported while an embedded server starts."""
    home = storage_for(root).local.absolute() / "prefect"
    for name, value in {**QUIET, "PREFECT_HOME": str(home)}.items():
        os.environ.setdefault(name, value)
    with prefect_api(home) as server:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        if server is not None:
            server.wait()
        try:
            yield
        finally:
            # What they still hold would be lost, noisily, with an embedded server.
            APILogWorker.drain_all(timeout=SECONDS_TO_DRAIN)
            EventsWorker.drain_all(timeout=SECONDS_TO_DRAIN)


def load(path: Path, overrides: list[str] | None, iterations: int | None) -> DistillConfig:
    """The config in the file at `path`, with its overrides."""
    extra = [] if iterations is None else [f"iterations={iterations}"]
    return load_config(path, [*(overrides or []), *extra])


def lineage_of(store: Store, name: str, run: str | None = None) -> Lineage:
    """The lineage of what is called `name`: a version, a dataset or model as in `named`, or a prompt by digits of its id."""
    version, colon, _ = name.rpartition(":")
    if colon or "/" in name:
        return of_handle(store, named(store, name), find(store, version) if colon else None)
    try:
        return of_version(store, find(store, name))
    except ConfigError:
        if not PROMPT_ID.match(name):
            raise
    versions, prompt_id = find_prompt(store, name, run)
    if len({version.content.datasets["prompts"] for version in versions}) > 1:
        raise several_runs(prompt_id, versions)
    return of_prompt(store, versions[0], prompt_id)


def prompt_of(store: Store, digits: str, run: str | None) -> tuple[Version, str]:
    """The latest version of the run that has the prompt, and its whole id. Raises ConfigError if it is not clear which."""
    versions, prompt_id = find_prompt(store, digits, run)
    if len(versions) > 1:
        raise several_runs(prompt_id, versions)
    return versions[0], prompt_id


def several_runs(prompt_id: str, versions: Sequence[Version]) -> ConfigError:
    """What is wrong where a run must be named."""
    return ConfigError(
        f"prompt {prompt_id[:12]} is in the runs {', '.join(version.run for version in versions)}: say which with --run"
    )


def print_versions(store: Store, found: list[Version], *, as_json: bool) -> None:
    """The versions `found`, as JSON or as tables."""
    if as_json:
        print(json.dumps([version.model_dump(mode="json") for version in found], indent=1))
    else:
        show.versions(store, found)
