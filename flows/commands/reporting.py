"""Commands that write pages and figures for people."""

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Json, Root
from wind.errors import ConfigError
from wind.files import atomic_write
from wind.machine.terminal import say, say_json
from wind.store.datasets import Store
from wind.store.references import find_version

commands = typer.Typer()

Force = Annotated[bool, typer.Option("--force", help="Replace what is not a report.")]


@commands.command()
def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a version.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Compare with this run or version.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file to write; by default, the run's in the store."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write a folder instead, which also holds what no single file can."),
    ] = None,
    force: Force = False,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Write a page that shows whether a run made the policy better.

    It is one file that needs nothing else: results with intervals, figures,
    checks, lineage, recipe, and the samples of a small run. With OTHER the page
    compares two versions side by side.
    """
    from flows.pages import writing

    if out is not None and bundle is not None:
        raise ConfigError("give either --out, for a file, or --bundle, for a folder")
    store = Store(root)
    versions = [find_version(store, each) for each in (name, other) if each is not None]
    if bundle is not None:
        written = writing.write_bundle(store, versions, bundle, force=force)
    elif out is not None:
        written = writing.write_page(store, versions, out, force=force)
    else:
        written = writing.keep_page(store, versions)
    say_json(written) if as_json else say(written["page"])


@commands.command()
def figures(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a version.")],
    out: Annotated[Path, typer.Option(help="The folder for the SVG and PNG files.")],
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Write the figures of a run's page, as SVG and PNG, for papers."""
    from flows.pages.figures import figures as drawn
    from wind.audit.lineage import chain

    store = Store(root)
    versions = chain(store, find_version(store, name))
    charts = [chart for section in drawn(store, versions).values() for chart in section]
    out.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        atomic_write(out / f"{chart.name}.svg", chart.svg().encode())
        atomic_write(out / f"{chart.name}.png", chart.png())
    if as_json:
        say_json([{"name": chart.name, "title": chart.title} for chart in charts])
    else:
        say(*(f"{out / chart.name}.svg  {chart.title}" for chart in charts))
