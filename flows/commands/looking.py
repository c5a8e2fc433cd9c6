"""Commands that look at what is stored."""

import json
from typing import Annotated

import typer

from flows import show, show_audit
from flows.options import Json, Root, print_versions, prompt_of
from wind.datasets import Store
from wind.errors import ConfigError
from wind.histories import history
from wind.reading import named
from wind.versions import Versions, find
from wind.versions import runs as runs_of

commands = typer.Typer()


@commands.command()
def versions(
    run_name: Annotated[str | None, typer.Argument(metavar="[RUN]")] = None, root: Root = "store", as_json: Json = False
) -> None:
    """List the dataset versions of a run, or of all runs."""
    store = Store(root)
    if run_name is not None and run_name not in runs_of(store):
        raise ConfigError(f"no run is called {run_name!r} in {root} (runs: {', '.join(runs_of(store)) or 'none'})")
    found = [version for name in ([run_name] if run_name else runs_of(store)) for version in Versions(store, name)]
    print_versions(store, found, as_json=as_json)


@commands.command("show")
def show_version(
    name: Annotated[str, typer.Argument(metavar="VERSION", help="RUN, RUN@latest, RUN@3, or digits of an id")],
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show one version: datasets, checks, metrics, parents."""
    version = find(Store(root), name)
    print(version.model_dump_json(indent=1)) if as_json else show.version(Store(root), version)


@commands.command()
def rows(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="VERSION:generations, or generations/DIGITS")],
    where: Annotated[str | None, typer.Option(help="an SQL condition on the columns")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 10,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Look at the rows of a dataset."""
    store = Store(root)
    found = show.select(store, named(store, name), where=where, limit=limit)
    print(json.dumps(found.to_dicts(), indent=1)) if as_json else show.frame(found)


@commands.command()
def prompt(
    digits: Annotated[str, typer.Argument(metavar="ID", help="digits of a prompt_id, which `wind rows RUN:prompts` shows")],
    run_name: Annotated[str | None, typer.Option("--run", help="which run, where several have the prompt")] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show one prompt's responses in every iteration side by side."""
    store = Store(root)
    found = history(store, *prompt_of(store, digits, run_name))
    print(found.model_dump_json(indent=1)) if as_json else show_audit.history(found)
