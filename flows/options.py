"""Options that commands share, and their Prefect API."""

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

Config = Annotated[Path, typer.Argument(help="A YAML file, such as configs/demo.yaml.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a field, as in --set training.lr=1e-6."),
]
Iterations = Annotated[
    int | None, typer.Option(min=1, help="Override the config's number of iterations.")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="VERSION", help="Continue this version instead of starting afresh."
    ),
]
Root = Annotated[str, typer.Option(envvar="WIND_ROOT", help="The folder or URL of the store.")]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Show code that is named by data, and run it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SignedBy = Annotated[
    Path | None,
    typer.Option(
        metavar="ALLOWED",
        help="Accept only what is signed by a key in this .pub or allowed_signers file.",
    ),
]


@contextmanager
def prefect(root: str) -> Iterator[None]:
    """Provide a Prefect API for the block.

    Prefect itself is imported while an embedded server starts.
    """
    home = storage_for(root).local.absolute() / "prefect"
    wanted = {**QUIET, "PREFECT_HOME": str(home)}
    with variables(unset(wanted)), prefect_api(home) as server:
        from flows.outages import reporting

        if server is not None:
            server.wait()
        with reporting():
            yield


def load(path: Path, overrides: list[str] | None, iterations: int | None) -> DistillConfig:
    """Load the config file at `path` with its overrides."""
    extra = [] if iterations is None else [f"iterations={iterations}"]
    return load_config(path, [*(overrides or []), *extra])


def print_versions(store: Store, found: list[Version], *, as_json: bool) -> None:
    """Print `found` as JSON or as tables."""
    if as_json:
        say_json([version.model_dump(mode="json") for version in found])
    else:
        show.versions(store, found)
