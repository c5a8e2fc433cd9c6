"""Commands that move data to other tools, machines, or the Hub."""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.options import Json, Root, SignedBy
from wind.errors import ConfigError
from wind.exchange.answers import export_alpaca_eval, export_mt_bench
from wind.exchange.archives import export_archive, import_archive
from wind.exchange.exports import Exportable, export_hf, export_model, export_parquet
from wind.exchange.hub import push, repository, require_token
from wind.machine.terminal import say, say_json
from wind.store.datasets import Store
from wind.store.origins import not_computed_here

commands = typer.Typer()

What = Annotated[
    str,
    typer.Argument(
        metavar="X", help="A version, VERSION:generations, VERSION:model_out, or NOUN/DIGITS."
    ),
]


class Format(StrEnum):
    HF = "hf"
    PARQUET = "parquet"
    MODEL = "model"
    ARCHIVE = "archive"
    ALPACA_EVAL = "alpaca_eval"
    MT_BENCH = "mt_bench"


WRITERS = {
    Format.HF: export_hf,
    Format.PARQUET: export_parquet,
    Format.MODEL: export_model,
    Format.ALPACA_EVAL: export_alpaca_eval,
    Format.MT_BENCH: export_mt_bench,
}


@commands.command()
def export(
    name: What,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder, or a file.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="What to write: datasets with a card, plain Parquet, a model folder, one file, or "
            "the answers that AlpacaEval or MT-Bench judge.",
        ),
    ],
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Export a version, a dataset or a model for other tools.

    As an archive, a whole version with its parents moves to another machine.
    """
    store = Store(root)
    subject = Exportable.of(store, name)
    if form is not Format.ARCHIVE:
        WRITERS[form](store, subject, destination)
    elif subject.version is None or not subject.datasets:
        raise ConfigError(
            f"{name} is not a version: an archive holds a version and everything it was made of"
        )
    else:
        export_archive(store, subject.version, destination)
    files = (
        [destination]
        if destination.is_file()
        else [path for path in destination.rglob("*") if path.is_file()]
    )
    facts = {
        "path": str(destination),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }
    say_json(facts, None) if as_json else say(
        f"{subject.name}  {destination}  {facts['files']} files  {facts['bytes']} bytes"
    )


@commands.command("import")
def import_version(
    archive: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file written by `wind export --format archive`."),
    ],
    run_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Import it as versions of this run."),
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(
            metavar="SENDER",
            help="Trust this sender's computations and checks like your own; "
            "its versions say so forever.",
        ),
    ] = None,
    signed_by: SignedBy = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Verify an archive, then import its version with its parents."""
    if not archive.is_file():
        raise ConfigError(
            f"{archive} is not a file: name one written by `wind export --format archive`"
        )
    store = Store(root)
    found = import_archive(store, archive, run_name, trust, signed_by)
    name = f"{found.version.run}@{found.version.number}"
    facts = {
        "version": name,
        "id": found.version.id,
        "versions": found.versions,
        "stored": found.stored,
        "bytes": found.bytes,
    }
    added = f"{found.versions} versions and {found.stored} datasets and models added"
    if as_json:
        say_json(facts, None)
    else:
        say(f"{name}  {found.version.id[:12]}  {found.bytes} bytes verified, {added}")
        say(
            *(
                f"{name} is {elsewhere}"
                for elsewhere in [not_computed_here(store, found.version)]
                if elsewhere
            )
        )


@commands.command("push")
def push_to_hub(
    name: What,
    destination: Annotated[
        str, typer.Argument(metavar="hub:ORG/NAME", help="A repository on the Hugging Face Hub.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public instead of private.")
    ] = False,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Push datasets or a model to the Hugging Face Hub.

    X is a version, whose datasets are pushed, one dataset, or a model
    (VERSION:model_out); its card is pushed with it.
    """
    wanted = repository(destination)
    require_token()
    store = Store(root)
    subject = Exportable.of(store, name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        (export_hf if subject.datasets else export_model)(store, subject, folder)
        url = push(
            folder,
            wanted,
            "dataset" if subject.datasets else "model",
            public=public,
            message=f"{subject.name} by `wind push`",
        )
    say_json({"url": url}, None) if as_json else say(url)
