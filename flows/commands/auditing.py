"""Commands that verify and explain what is stored."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows import show
from flows.options import Json, Root, RunCode, SignedBy
from wind.errors import ConfigError, DatasetError
from wind.machine.terminal import say, say_json
from wind.store.datasets import Store
from wind.store.references import REFERENCE, find_dataset, find_version
from wind.store.versions import history, runs

if TYPE_CHECKING:
    from wind.audit.verification import Verification

commands = typer.Typer()


@commands.command("verify")
def verify_content(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[X]", help="A version or a dataset; everything if left out."),
    ] = None,
    reproduce: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Recompute this dataset of the version, and compare the results."
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="The folder to reproduce in; by default, one within the store."),
    ] = None,
    run_code: RunCode = False,
    signed_by: SignedBy = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Verify a version with its parents, a dataset, or the whole store.

    Every checksum, seal and foreign key is recomputed.
    """
    from wind.audit.verification import Verification

    store = Store(root)
    if reproduce is not None:
        _reproduce(store, name, reproduce, scratch, run_code=run_code, as_json=as_json)
        return
    verification = Verification(store)
    if signed_by is not None:
        _verify_signed(verification, name, signed_by, as_json=as_json)
        return
    if name is None:
        verification.everything()
    elif "/" in name or ":" in name:
        verification.dataset(find_dataset(store, name))
    else:
        _verify_version(verification, name)
    if as_json:
        say_json({"verified": name or root, **verification.report()})
    else:
        show.verified(name or root, verification)
    verification.require()


@commands.command()
def lineage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="A version, VERSION:rewards, rewards/DIGITS, models/DIGITS, or a prompt's id.",
        ),
    ],
    run_name: Annotated[
        str | None, typer.Option("--run", help="For a prompt: the run to look in.")
    ] = None,
    form: Annotated[
        Literal["tree", "mermaid"],
        typer.Option(
            "--format",
            help="What to print: a tree, or Mermaid text, which GitHub and mermaid-cli draw.",
        ),
    ] = "tree",
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show every ancestor, back to the files that were imported."""
    from flows import show_audit
    from flows.references import lineage_of
    from wind.audit.lineage.mermaid import flowchart

    found = lineage_of(Store(root), name, run_name)
    if as_json:
        say_json(found)
    elif form == "mermaid":
        say(*flowchart(found).rstrip("\n").split("\n"))
    else:
        show_audit.lineage(found)


@commands.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A version, or a run.")],
    after: Annotated[
        str,
        typer.Argument(
            metavar="B", help="The other one; two runs are also compared iteration by iteration."
        ),
    ],
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Show what differs between two versions, and why each dataset was recomputed."""
    from flows import show_audit
    from wind.audit.diff import difference

    store = Store(root)
    are_runs = all(name in runs(store) for name in (before, after))
    found = difference(
        store, find_version(store, before), find_version(store, after), aligned=are_runs
    )
    say_json(found) if as_json else show_audit.difference(found)


@commands.command()
def ratings(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, or a version with all before it.")
    ],
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="J", help="The judge: training, gold, or one of the recipe; by default each."
        ),
    ] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Rate all iterations of a run against each other.

    The ratings are Bradley-Terry's, in logits and Elo points above the policy
    that the run began with, with 95% intervals.
    """
    from flows import show_audit
    from wind.audit.ratings import judges_of
    from wind.audit.ratings import ratings as rated

    store = Store(root)
    chain = history(store, find_version(store, name))
    found = {each: rated(store, chain, each) for each in judge or judges_of(chain[-1])}
    if as_json:
        say_json({each: [rating.model_dump() for rating in rows] for each, rows in found.items()})
    else:
        show_audit.ratings(found)


def _verify_version(verification: "Verification", name: str) -> None:
    """Verify the version called `name`.

    Verifies its whole run if damage prevents finding the version.
    """
    match = REFERENCE.fullmatch(name if "@" in name else f"{name}@latest")
    try:
        found = find_version(verification.store, name)
    except (ConfigError, DatasetError) as error:
        is_there = match is not None and match["run"] in runs(verification.store)
        if (
            match is None
            or not is_there
            or (isinstance(error, ConfigError) and match["tag"] != "latest")
        ):
            raise
        verification.run(match["run"])
    else:
        verification.version(found.run, found.number)


def _verify_signed(
    verification: "Verification", name: str | None, signed_by: Path, *, as_json: bool
) -> None:
    """Verify a version, and that it and all its predecessors are signed."""
    from wind.audit.allowed_signers import Allowed
    from wind.audit.signatures import require, signed

    if name is None or "/" in name or ":" in name:
        raise ConfigError("--signed-by needs a version: wind verify RUN@2 --signed-by ann.pub")
    allowed, store = Allowed(signed_by), verification.store
    chain = history(store, find_version(store, name), is_whole=False)
    for version in chain:
        verification.version(version.run, version.number)
    found = [] if verification.findings else [signed(store, version, allowed) for version in chain]
    if as_json:
        say_json(
            {
                "verified": name,
                **verification.report(),
                "signatures": [each.report() for each in found],
            }
        )
    else:
        show.verified(name, verification)
        show.signed(found)
    verification.require()
    require(found)


def _reproduce(
    store: Store,
    name: str | None,
    stage: str,
    scratch: Path | None,
    *,
    run_code: bool,
    as_json: bool,
) -> None:
    from tasks.reproduction import reproduced
    from tasks.run import KeptConfig
    from wind.code.named_code import functions_in

    if name is None:
        raise ConfigError("--reproduce needs a version: wind verify RUN@2 --reproduce rewards")
    version = find_version(store, name)
    handles = version.content.datasets
    if stage not in handles:
        raise ConfigError(f"{name} has no dataset {stage!r}: it has {', '.join(handles)}")
    kept = KeptConfig.of(store, version.run)
    own = list(functions_in(kept.config)) if kept is not None and kept.is_own else []
    result = reproduced(store, handles[stage], scratch, own=own, run_code=run_code)
    if as_json:
        say_json({"reproduced": f"{name}:{stage}", **asdict(result)})
    else:
        show.reproduced(f"{name}:{stage}", result)
    if result.differences:
        raise DatasetError(f"{name}:{stage} was not reproduced: {result.differences[0]}")
