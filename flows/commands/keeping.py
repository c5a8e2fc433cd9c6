"""Commands that decide what is kept: tags, forgetting, garbage collection."""

from typing import Annotated

import typer

from flows import show
from flows.options import Json, Root
from wind.errors import ConfigError
from wind.machine.terminal import say_json
from wind.store import forgetting, studies
from wind.store.datasets import Store
from wind.store.garbage import collect
from wind.store.references import find_version
from wind.store.versions import Versions, runs

commands = typer.Typer()

Named = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="RUN, RUN@latest, RUN@3, RUN@TAG, or digits of an id."),
]


@commands.command("tag")
def tag_version(
    name: Named,
    tag: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The tag: letters, digits, dots, dashes and underscores, but not just a number.",
        ),
    ],
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the tag NAME from the run of VERSION.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Move the tag if it points to another version.")
    ] = False,
    root: Root = "store",
) -> None:
    """Give a version a permanent name: RUN@NAME."""
    store = Store(root)
    version = find_version(store, name)
    if delete:
        Versions(store, version.run).untag(tag)
    else:
        Versions(store, version.run).tag(tag, version, force=force)


@commands.command()
def tags(
    run_name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run; all runs if left out.")
    ] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """List the tags of one or all runs, with their versions."""
    store = Store(root)
    if run_name is not None and run_name not in runs(store):
        raise ConfigError(
            f"no run is called {run_name!r} in {root} (runs: {', '.join(runs(store)) or 'none'})"
        )
    found = []
    for run in [run_name] if run_name else runs(store):
        numbers = {version.id: version.number for version in Versions(store, run)}
        for tag, wanted in Versions(store, run).tags().items():
            found.append({"run": run, "tag": tag, "number": numbers.get(wanted), "id": wanted})
    say_json(found) if as_json else show.tags(found)


@commands.command()
def forget(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|VERSION", help="A version, or a run or study to forget completely."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Forget it even if a tag names it or another version continues it."
        ),
    ] = False,
    root: Root = "store",
) -> None:
    """Remove the record of an unwanted version.

    `wind gc` then frees what nothing else needs.
    """
    store = Store(root)
    if "@" not in name and (
        name in runs(store) or name in {study.run for study in studies.studies(store)}
    ):
        forgetting.forget(store, name, list(Versions(store, name)), force=force)
        studies.forget(store, name)
    else:
        version = find_version(store, name)
        forgetting.forget(store, version.run, [version], force=force)


@commands.command()
def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
    ] = False,
    keep_weights: Annotated[
        str | None,
        typer.Option(metavar="all|tagged|K", help="Override retention.weights of all runs."),
    ] = None,
    keep_states: Annotated[
        int | None, typer.Option(min=0, help="Override retention.optimizer_states of all runs.")
    ] = None,
    keep_unfinished: Annotated[
        bool,
        typer.Option("--keep-unfinished", help="Keep what interrupted stages can resume from."),
    ] = False,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Remove everything that is no longer needed.

    That is everything that no version, study or running process uses, and that
    the retention policies of the runs do not keep.
    """
    collected = collect(
        Store(root),
        dry_run=dry_run,
        weights=None if keep_weights is None else _weights(keep_weights),
        optimizer_states=keep_states,
        keep_unfinished=keep_unfinished,
    )
    if as_json:
        kinds = {
            kind: {"items": items, "bytes": size}
            for kind, (items, size) in collected.kinds().items()
        }
        items = [
            {"kind": item.kind, "name": item.name, "bytes": item.bytes} for item in collected.items
        ]
        say_json({"dry_run": dry_run, "bytes": collected.bytes(), "kinds": kinds, "items": items})
    else:
        show.collected(collected)


def _weights(text: str) -> str | int:
    if text in ("all", "tagged"):
        return text
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise ConfigError(
        f"--keep-weights {text!r} must be all, tagged, or a number of latest versions, such as 2"
    )
