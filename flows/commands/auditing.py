"""Commands that prove what is stored."""

import json
from typing import Annotated

import typer

from flows import show
from flows.options import Json, Root, named
from wind.datasets import Store
from wind.versions import Versions, find, runs, verify

commands = typer.Typer()


@commands.command("verify")
def verify_content(
    name: Annotated[str | None, typer.Argument(metavar="[X]", help="a version or a dataset; everything, if left out")] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Recompute every checksum and fingerprint of a version and its parents, of a dataset, or of the whole store."""
    store = Store(root)
    if name is None:
        checked = {
            f"{version.run}@{version.number}": verify(store, version) for run in runs(store) for version in Versions(store, run)
        }
        for kind in [*store.storage.names("datasets"), "models", "sources"]:
            checked |= {show.label(handle): store.verify(handle).bytes() for handle in store.handles(kind)}
    elif "/" in name or ":" in name:
        checked = {name: store.verify(named(store, name)).bytes()}
    else:
        checked = {name: verify(store, find(store, name))}
    print(json.dumps(checked, indent=1)) if as_json else show.verified(checked)
