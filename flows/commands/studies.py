"""Commands that run several recipes, or the bandits, and compare them."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import show
from flows.options import Config, Json, Root, Set, prefect
from wind.config.loading import bandit_config
from wind.errors import ConfigError
from wind.machine.terminal import say_json
from wind.store import studies

if TYPE_CHECKING:
    from flows.grid import Cell

commands = typer.Typer()

Seeds = Annotated[str, typer.Option(help="The seeds of the runs, such as 0,1,2.")]
Target = Annotated[float, typer.Option(min=0, max=1, help="The win rate whose cost is reported.")]
Metrics = Annotated[
    str, typer.Option(help="The metrics to draw, such as win_rate,accuracy,entropy.")
]
Out = Annotated[Path | None, typer.Option(help="The folder for README.md and the figures.")]

# the study has about ninety shards, which take seconds
BANDIT_PROCESSES = 8


@commands.command()
def compare(
    configs: Annotated[
        list[Path],
        typer.Argument(metavar="CONFIG...", help="Recipes that differ only in the algorithm."),
    ],
    set_: Set = None,
    seeds: Seeds = "0,1,2",
    tried: Annotated[
        list[str] | None,
        typer.Option(
            "--try", metavar="K=V1,V2", help="Values of a setting to choose from on the first seed."
        ),
    ] = None,
    target: Target = 0.7,
    metrics: Metrics = "win_rate,accuracy",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run several recipes with several seeds, and compare them.

    The comparison covers win rates, KL, costs and figures.
    """
    from flows.grid import read_recipes

    trials = read_recipes(configs, set_ or [], tried or [])
    if any(len(cells) > 1 for cells in trials) and len(_seeds(seeds)) < 2:
        raise ConfigError(
            "--try uses the first seed to choose a setting, and reports the others: "
            "give --seeds two or more"
        )
    _study(
        "compare", trials, _seeds(seeds), target=target, metrics=metrics, out=out, as_json=as_json
    )


@commands.command()
def sweep(
    config: Config,
    over: Annotated[
        list[str],
        typer.Option(metavar="K=V1,V2", help="The values of a setting, one axis of the grid."),
    ],
    set_: Set = None,
    seeds: Seeds = "0,1,2",
    target: Target = 0.7,
    metrics: Metrics = "win_rate,accuracy",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run a recipe under every combination of settings, with several seeds."""
    from flows.grid import grid

    trials = [[cell] for cell in grid(config, set_ or [], over)]
    _study("sweep", trials, _seeds(seeds), target=target, metrics=metrics, out=out, as_json=as_json)


@commands.command()
def bandit(
    out: Annotated[Path, typer.Option(help="The folder for the figures and tables.")] = Path(
        "docs/bandit"
    ),
    seed: Annotated[int, typer.Option(min=0, help="The seed of the study.")] = 0,
    set_: Set = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Compare all algorithms on bandits whose solution is known.

    Produces two datasets, figures and tables.
    """
    processes = min(os.cpu_count() or 1, BANDIT_PROCESSES)
    config = bandit_config(
        set_ or (), root=str(root), seed=seed, workers={"processes": processes, "device": "cpu"}
    )
    with prefect(config.root):
        from flows.bandit import bandit as study
        from flows.outages import finished
        from tasks.run import disbelieved, open_run

        with open_run(config) as here:
            made = finished(study)(here.config, out)
            studies.record(here.store, config.run, made)
            outcomes = here.outcomes()
            here.terminal.line(
                f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache; "
                f"see {out}"
            )
            for line in disbelieved(here.store):
                here.terminal.line(line)
            found = {
                name: {**handle.model_dump(), "path": here.store.where(handle)}
                for name, handle in made.items()
            }
            say_json(found) if as_json else show.datasets(found)


def _study(
    name: str,
    trials: "list[list[Cell]]",
    seeds: list[int],
    *,
    target: float,
    metrics: str,
    out: Path | None,
    as_json: bool,
) -> None:
    from flows import report

    drawn = report.known_metrics(metrics)
    config = trials[0][0].config
    with prefect(config.root):
        from flows.compare import study
        from flows.outages import finished
        from tasks.run import disbelieved, open_run

        with open_run(config.model_copy(update={"run": name})) as here:
            found = finished(study)(name, trials, seeds)
            studies.record(here.store, name, {"comparison": found.comparison})
            outcomes = found.outcomes()
            here.terminal.line(
                f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache"
            )
            for line in disbelieved(here.store):
                here.terminal.line(line)
            made = report.report(here.store, found, target=target, metrics=drawn)
            if as_json:
                say_json([average.model_dump(mode="json") for average in made.averages])
            else:
                report.show(made)
            if out is not None:
                report.write(made, found, f"wind {shlex.join(sys.argv[1:])}", out)


def _seeds(text: str) -> list[int]:
    seeds = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(seeds) < len(text.split(",")) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"--seeds {text!r} must be different whole numbers, separated by commas: 0,1,2"
        )
    return seeds
