"""The command that signs versions."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.options import Json, Root
from wind.errors import ConfigError, DatasetError
from wind.files import atomic_write, read_plain
from wind.machine.terminal import complain, say, say_json
from wind.store.datasets import Store
from wind.store.origins import not_computed_here
from wind.store.references import find_version
from wind.store.versions import Version, history

if TYPE_CHECKING:
    from wind.audit.signatures import Statement

commands = typer.Typer()


@commands.command()
def sign(
    name: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", help="RUN, RUN@latest, RUN@3, RUN@TAG, or digits of an id."
        ),
    ],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The private SSH key to sign with.")
    ] = None,
    by_hand: Annotated[
        Path | None,
        typer.Option(
            "--statements",
            metavar="FOLDER",
            help="Write statements for `ssh-keygen -Y sign`; given again, read their .sig files.",
        ),
    ] = None,
    only: Annotated[
        bool,
        typer.Option("--only", help="Sign this version, and not those that it continues."),
    ] = False,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Verify a version and all it continues, then sign each.

    The signatures are for `wind verify` and `wind import --signed-by`.
    """
    from wind.audit.signatures import NAMESPACE, statements
    from wind.audit.ssh_signatures import private_key

    if (key is None) == (by_hand is None):
        raise ConfigError(
            "give --key FILE, or --statements FOLDER for the keys of an agent or a hardware token"
        )
    private = (
        None if key is None else private_key(key.expanduser(), _ask if sys.stdin.isatty() else None)
    )
    store = Store(root)
    chain = history(store, find_version(store, name), is_whole=False)
    _verify(store, chain)
    wanted = list(zip(chain, statements(store, chain), strict=True))[-1 if only else 0 :]
    if private is not None:
        armored = [private.sign(statement.text(), NAMESPACE).encode() for _, statement in wanted]
    else:
        assert by_hand is not None, "one of the two is given"
        armored = _signed_by_hand(by_hand, [statement for _, statement in wanted])
    _keep(store, wanted, armored, as_json=as_json)


def _ask() -> str:
    passphrase: str = typer.prompt("passphrase of the key", hide_input=True, err=True)
    return passphrase


def _verify(store: Store, chain: Sequence[Version]) -> None:
    """Raise DatasetError unless all of `chain` is intact, which a signature states."""
    from wind.audit.verification import Verification

    verification = Verification(store)
    for version in chain:
        verification.version(version.run, version.number)
    verification.require()


def _signed_by_hand(folder: Path, wanted: "Sequence[Statement]") -> list[bytes]:
    """Write statements to `folder`, and return their signatures.

    Returns none until all have been signed by hand.
    """
    files = [folder / f"{statement.version}.json" for statement in wanted]
    folder.mkdir(parents=True, exist_ok=True)
    for file, statement in zip(files, wanted, strict=True):
        atomic_write(file, statement.text())
    signatures = [Path(f"{file}.sig") for file in files]
    missing = [
        file for file, signature in zip(files, signatures, strict=True) if not signature.exists()
    ]
    if missing:
        for file in missing:
            complain(f"to be signed: {file}")
        complain(
            f"`ssh-keygen -Y sign -n wind-version -f KEY {folder}/*.json` signs them: "
            "then give this command again"
        )
        return []
    return [read_plain(signature) for signature in signatures]


def _keep(
    store: Store,
    wanted: "Sequence[tuple[Version, Statement]]",
    armored: Sequence[bytes],
    *,
    as_json: bool,
) -> None:
    """Store the given signatures, and report them."""
    from wind.audit.signatures import keep
    from wind.audit.ssh_signatures import SignatureError

    said = []
    for (version, statement), signature in zip(wanted, armored, strict=bool(armored)):
        name = f"{version.run}@{version.number}"
        try:
            by = keep(store, version, statement.text(), signature)
        except SignatureError as error:
            raise DatasetError(
                f"the signature of {name} {error}: sign {version.id}.json again"
            ) from error
        said.append({"version": name, "id": version.id, "key": by})
        if not as_json:
            elsewhere = not_computed_here(store, version)
            where = f"  ({elsewhere})" if elsewhere else ""
            say(f"{name}  {version.id[:12]}  signed with {by}{where}")
    if as_json:
        say_json(said)
