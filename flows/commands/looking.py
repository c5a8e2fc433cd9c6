"""Commands that show what is stored."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.options import Json, Root, print_versions
from wind.errors import ConfigError
from wind.machine.terminal import say, say_json
from wind.store.datasets import Store
from wind.store.references import find_dataset, find_version
from wind.store.versions import Versions
from wind.store.versions import runs as runs_of

commands = typer.Typer()


@commands.command()
def versions(
    run_name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run; all runs if left out.")
    ] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """List the dataset versions of a run, or of all runs."""
    store = Store(root)
    if run_name is not None and run_name not in runs_of(store):
        raise ConfigError(
            f"no run is called {run_name!r} in {root} (runs: {', '.join(runs_of(store)) or 'none'})"
        )
    found = [
        version
        for name in ([run_name] if run_name else runs_of(store))
        for version in Versions(store, name)
    ]
    print_versions(store, found, as_json=as_json)


@commands.command("show")
def show_version(
    name: Annotated[
        str,
        typer.Argument(metavar="VERSION", help="RUN, RUN@latest, RUN@3, or digits of an id."),
    ],
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show a version: its datasets, checks, metrics and parents."""
    version = find_version(Store(root), name)
    say_json(version) if as_json else show.version(Store(root), version)


@commands.command()
def rows(
    name: Annotated[
        str, typer.Argument(metavar="DATASET", help="VERSION:generations, or generations/DIGITS.")
    ],
    where: Annotated[str | None, typer.Option(help="An SQL condition on the columns.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of rows to show.")] = 10,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show rows of a dataset."""
    import polars as pl

    from wind.exchange.sql import select

    store = Store(root)
    found = pl.from_arrow(select(store, find_dataset(store, name), where=where, limit=limit))
    assert isinstance(found, pl.DataFrame)
    say_json(found.fill_nan(None).to_dicts()) if as_json else show.frame(found)


@commands.command()
def prompt(
    digits: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Digits of a prompt_id, which `wind rows RUN:prompts` shows."
        ),
    ],
    run_name: Annotated[
        str | None, typer.Option("--run", help="The run to look in, if several have the prompt.")
    ] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show one prompt's responses in all iterations side by side."""
    from flows import show_audit
    from flows.references import prompt_of
    from wind.audit.prompt_history import history

    store = Store(root)
    found = history(store, *prompt_of(store, digits, run_name))
    say_json(found) if as_json else show_audit.history(found)


@commands.command()
def sql(
    query: Annotated[
        str,
        typer.Argument(
            help="A query such as 'SELECT iteration, avg(reward) FROM rewards GROUP BY ALL'."
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Query only this version.")
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="Query all versions of this run."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this CSV file.")] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write the rows to this Parquet file.")
    ] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Query the datasets of a run in SQL.

    Each dataset is a view with its columns, `iteration` and `version`, and so is
    the list of `versions`. Without VERSION and --run, the store must have a
    single run, which is queried.
    """
    from flows.query_output import print_json, print_rows, write_rows
    from wind.exchange.sql import answer

    if sum([csv is not None, parquet is not None, as_json]) > 1 or (name and run_name):
        raise ConfigError("give one of --json, --csv and --parquet, and either VERSION or --run")
    store = Store(root)
    found = (
        [find_version(store, name)] if name else list(Versions(store, _only_run(store, run_name)))
    )
    with answer(store, found, query) as rows:
        if csv or parquet:
            say_json({"rows": write_rows(rows, csv=csv, parquet=parquet)}, None)
        elif as_json:
            print_json(rows)
        else:
            print_rows(rows)


def _only_run(store: Store, name: str | None) -> str:
    """Return the run called `name`, or the only one there is."""
    known = runs_of(store)
    if name in known:
        return str(name)
    if name is None and len(known) == 1:
        return known[0]
    what = "name one with --run" if name is None else f"no run is called {name!r}"
    raise ConfigError(f"{what} (runs in {store.storage.url}: {', '.join(known) or 'none'})")


@commands.command()
def ui(
    run_name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The run to show first.")
    ] = None,
    port: Annotated[int, typer.Option(help="The port on the loopback; 0 for any free one.")] = 0,
    root: Root = "store",
) -> None:
    """Show a run in a browser: at a glance, and every sample of it.

    Prints a URL that signs a browser in, and serves until ctrl-C. New versions
    of a run in progress appear by themselves.
    """
    import secrets

    from flows.guard import listen, serve, sign_in_url
    from flows.ui import Pages

    pages = Pages(Store(root), run_name)
    with listen(port) as listener:
        secret = secrets.token_urlsafe(32)
        say(sign_in_url(listener.getsockname()[1], secret))
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            serve(pages.application(), listener, secret)


@commands.command()
def browse(
    name: Annotated[
        str,
        typer.Argument(metavar="VERSION", help="RUN, RUN@latest, RUN@3, or digits of an id."),
    ],
    light: Annotated[
        bool, typer.Option("--light", help="For a light terminal; the key `l` changes it, too.")
    ] = False,
    root: Root = "store",
) -> None:
    """Read the samples of a version in the terminal, as over ssh.

    The key ? shows what the keys do.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "wind browse needs a terminal: `wind prompt ID` prints what one prompt's responses are"
        )
    from flows.browse.app import Browser
    from flows.pages.samples import open_reader

    store = Store(root)
    version, reader = find_version(store, name), open_reader(store)
    # what cannot be read is said before there is a screen
    reader.frame(version)
    Browser(reader, version, is_light=light).run()


@commands.command()
def notes(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")],
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON object per line, with the prompts.")
    ] = False,
    root: Root = "store",
) -> None:
    """List the notes and flags of readers on the prompts of a run."""
    from wind.inspection.reader import Reader

    for note in Reader(Store(root)).noted(run_name):
        if jsonl:
            say_json(note, None)
        else:
            flag = "flagged  " if note["flag"] else ""
            say(f"{note['prompt_id'][:12]}  {note['version'] or ''}  {flag}{note['note']}")
