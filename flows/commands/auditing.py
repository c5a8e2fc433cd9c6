"""Commands that prove what is stored."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows import show
from flows.options import Json, Root
from wind.datasets import AnyHandle, Store
from wind.files import atomic_write
from wind.versions import Versions, find, named, runs, verify

commands = typer.Typer()


@commands.command("verify")
def verify_content(
    name: Annotated[str | None, typer.Argument(metavar="[X]", help="a version or a dataset; everything, if left out")] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Recompute every checksum and fingerprint of a version and its parents, of a dataset, or of the whole store."""
    store = Store(root)
    models: Iterable[AnyHandle] = ()
    if name is None:
        models = store.handles("models")
        checked = {
            f"{version.run}@{version.number}": verify(store, version) for run in runs(store) for version in Versions(store, run)
        }
        for kind in [*store.storage.names("datasets"), "models", "sources"]:
            checked |= {show.label(handle): store.verify(handle).bytes() for handle in store.handles(kind)}
    elif "/" in name or ":" in name:
        checked = {name: store.verify(named(store, name)).bytes()}
    else:
        version = find(store, name)
        checked, models = {name: verify(store, version)}, version.handles().values()
    print(json.dumps(checked, indent=1)) if as_json else show.verified(checked)
    for model in sorted({show.label(model) for model in models if store.is_dropped(model)}):
        print(f"{model}  its weights were dropped by a retention policy", file=sys.stderr)


@commands.command()
def lineage(
    name: Annotated[
        str,
        typer.Argument(metavar="X", help="a version, VERSION:rewards, rewards/DIGITS, models/DIGITS, or a prompt's id"),
    ],
    run_name: Annotated[str | None, typer.Option("--run", help="of a prompt: the run whose it is")] = None,
    form: Annotated[Literal["tree", "mermaid"], typer.Option("--format", help="what to print")] = "tree",
    svg: Annotated[Path | None, typer.Option(help="draw the graph into this file, and print its path alone")] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show every ancestor, up to the files that came from outside."""
    from flows import show_audit
    from flows.subjects import lineage_of
    from wind.lineage import drawing

    found = lineage_of(Store(root), name, run_name)
    if svg is not None:
        atomic_write(svg, drawing.svg(found).encode())
        print(json.dumps({"svg": str(svg)}) if as_json else svg)
    elif as_json:
        print(found.model_dump_json(indent=1))
    elif form == "mermaid":
        print(drawing.mermaid(found), end="")
    else:
        show_audit.lineage(found)


@commands.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="a version, or a run")],
    after: Annotated[str, typer.Argument(metavar="B", help="the other; of two runs also iteration by iteration")],
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show what differs between two versions, and why each dataset was computed anew."""
    from flows import show_audit
    from wind.differences import difference

    store = Store(root)
    are_runs = all(name in runs(store) for name in (before, after))
    found = difference(store, find(store, before), find(store, after), aligned=are_runs)
    print(found.model_dump_json(indent=1)) if as_json else show_audit.difference(found)
