"""The command that examines this machine."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from flows.options import Json, Root, Set
from wind.config.loading import load_config
from wind.machine.terminal import say, say_json

commands = typer.Typer()


@commands.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="A recipe whose devices, backend and dtypes are examined."),
    ] = None,
    set_: Set = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Try every stage on this machine for two minutes; say what fails and the cure.

    Exits with 1 if a check fails.
    """
    from flows.doctor import Check, Doctor
    from flows.doctor.recipe import examined_config

    given = None if config is None else load_config(config, set_ or ())
    place = Path(root if given is None else given.root)

    def tell(check: Check) -> None:
        if not as_json:
            say(f"{check.outcome:<4}  {check.name:<17}  {check.seconds:>5.1f} s  {check.said}")

    with tempfile.TemporaryDirectory(prefix="wind-doctor-") as folder:
        checks = Doctor(examined_config(given), Path(folder), place).examine(tell)
    if as_json:
        say_json([check.model_dump(mode="json") for check in checks])
    if any(check.outcome == "fail" for check in checks):
        raise typer.Exit(1)
