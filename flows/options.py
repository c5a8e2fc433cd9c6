"""What the commands share: their options, and a Prefect API."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.api import prefect_api
from flows.server import QUIET
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.machine.environment import unset, variables
from wind.machine.terminal import say_json
from wind.store.datasets import Store
from wind.store.roots import storage_for
from wind.store.versions import Version

Config = Annotated[Path, typer.Argument(help="a YAML file, such as configs/demo.yaml")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="override a field: --set training.lr=1e-6"),
]
Iterations = Annotated[
    int | None, typer.Option(min=1, help="how many iterations, in place of the config's")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="VERSION", help="the version to continue, in place of the beginning"
    ),
]
Root = Annotated[str, typer.Option(envvar="WIND_ROOT", help="the store")]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="run code that is named by data, after showing it")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]

SignedBy = Annotated[
    Path | None,
    typer.Option(
        metavar="ALLOWED",
        help="believe what is signed by a key in this .pub or allowed_signers file, and nothing else",
    ),
]


@contextmanager
def prefect(root: str) -> Iterator[None]:
    """A Prefect API for the block; Prefect itself is imported while an embedded server starts."""
    home = storage_for(root).local.absolute() / "prefect"
    wanted = {**QUIET, "PREFECT_HOME": str(home)}
    with variables(unset(wanted)), prefect_api(home) as server:
        from flows.outages import told

        if server is not None:
            server.wait()
        with told():
            yield


def load(path: Path, overrides: list[str] | None, iterations: int | None) -> DistillConfig:
    """The config in the file at `path`, with its overrides."""
    extra = [] if iterations is None else [f"iterations={iterations}"]
    return load_config(path, [*(overrides or []), *extra])


def print_versions(store: Store, found: list[Version], *, as_json: bool) -> None:
    """The versions `found`, as JSON or as tables."""
    if as_json:
        say_json([version.model_dump(mode="json") for version in found])
    else:
        show.versions(store, found)
