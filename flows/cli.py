"""The command line `wind`: a thin face of the flows. Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 the run failed, 2 bad config or arguments, 3 a data check blocked the run.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import show
from flows.server import prefect_api
from wind.config import DistillConfig, bandit_config, load_config
from wind.datasets import AnyHandle, Store
from wind.errors import ConfigError, WindError
from wind.files import atomic_write
from wind.stages import STAGES
from wind.versions import Version, Versions, find, runs, verify

if TYPE_CHECKING:
    from flows.cells import Cell

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Config = Annotated[Path, typer.Argument(help="a YAML file, such as configs/demo.yaml")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="override a field: --set training.lr=1e-6")]
Iterations = Annotated[int | None, typer.Option(min=1, help="how many iterations, in place of the config's")]
Root = Annotated[Path, typer.Option(envvar="WIND_ROOT", help="the store")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Seeds = Annotated[str, typer.Option(help="seeds of the runs, such as 0,1,2")]
Target = Annotated[float, typer.Option(min=0, max=1, help="win rate of which the cost is told")]
Metrics = Annotated[str, typer.Option(help="what the figures show: win_rate,accuracy,entropy,...")]
Out = Annotated[Path | None, typer.Option(help="folder that gets README.md and the figures")]

SECONDS_TO_DRAIN = 5.0
BANDIT_PROCESSES = 8  # at most: the study has some ninety shards, and is done in seconds
USAGE_ERROR: Any = typer.BadParameter.__base__  # typer carries its own click, and does not export this name
QUIET = {  # Prefect's and Great Expectations' own voices; a run speaks for itself, and reports to nobody
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@app.command()
def run(config: Config, set_: Set = None, iterations: Iterations = None, as_json: Json = False) -> None:
    """Run a recipe, or continue it: what is in the cache is not computed again."""
    _distill(_load(config, set_, iterations), as_json=as_json)


@app.command()
def rerun(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="the name of a run")],
    stage: Annotated[str, typer.Option("--from", help=f"one of {', '.join(STAGES)}")],
    root: Root = Path("store"),
    as_json: Json = False,
) -> None:
    """Compute a stage anew, and what depends on it; nothing before it."""
    if stage not in STAGES:
        raise ConfigError(f"no stage is called {stage!r}: the stages are {', '.join(STAGES)}")
    path = root / "runs" / run_name / "config.json"
    if not path.is_file():
        raise ConfigError(f"no run is called {run_name!r} in {root} (runs: {', '.join(runs(Store(root))) or 'none'})")
    config = DistillConfig.model_validate_json(path.read_bytes()).model_copy(update={"root": str(root)})
    _distill(config, as_json=as_json, refresh=stage)


@app.command()
def plan(config: Config, set_: Set = None, iterations: Iterations = None, as_json: Json = False) -> None:
    """Show what a run would take from the cache and what it would compute. Computes nothing."""
    from flows.plan import planned

    steps = planned(_load(config, set_, iterations))
    print(json.dumps(steps, indent=1)) if as_json else show.plan(steps)


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="recipes that differ in the algorithm only")],
    set_: Set = None,
    seeds: Seeds = "0,1,2",
    tried: Annotated[
        list[str] | None, typer.Option("--try", metavar="K=V1,V2", help="settings to choose from on the first seed")
    ] = None,
    target: Target = 0.7,
    metrics: Metrics = "win_rate,accuracy",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run several recipes with several seeds and compare them: win rates, KL, costs, figures."""
    from flows.cells import read_recipes

    trials = read_recipes(configs, set_ or [], tried or [])
    if any(len(cells) > 1 for cells in trials) and len(_seeds(seeds)) < 2:
        raise ConfigError("--try takes the first seed to choose a setting, and reports the others: give --seeds two or more")
    _study("compare", trials, _seeds(seeds), target=target, metrics=metrics, out=out, as_json=as_json)


@app.command()
def sweep(
    config: Config,
    over: Annotated[list[str], typer.Option(metavar="K=V1,V2", help="the values of one axis of the grid")],
    set_: Set = None,
    seeds: Seeds = "0,1,2",
    target: Target = 0.7,
    metrics: Metrics = "win_rate,accuracy",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run a recipe under every combination of some settings, with several seeds."""
    from flows.cells import grid

    trials = [[cell] for cell in grid(config, set_ or [], over)]
    _study("sweep", trials, _seeds(seeds), target=target, metrics=metrics, out=out, as_json=as_json)


@app.command()
def serve(
    config: Config,
    cron: Annotated[str | None, typer.Option(help='when to run, such as "0 2 * * *"')] = None,
    interval: Annotated[float | None, typer.Option(min=1, help="seconds between runs")] = None,
    set_: Set = None,
    port: Annotated[int, typer.Option(help="of the embedded Prefect server and its UI")] = 4200,
) -> None:
    """Serve a recipe as a Prefect deployment: each due run continues it by one iteration."""
    if (cron is None) == (interval is None):
        raise ConfigError('say when to run: either --cron "0 2 * * *" or --interval SECONDS')
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from flows.deployments import serve_forever

    serve_forever(_load(config, set_, None), cron=cron, interval=interval, port=port)


@app.command()
def versions(
    run_name: Annotated[str | None, typer.Argument(metavar="[RUN]")] = None, root: Root = Path("store"), as_json: Json = False
) -> None:
    """List the dataset versions of a run, or of all runs."""
    store = Store(root)
    if run_name is not None and run_name not in runs(store):
        raise ConfigError(f"no run is called {run_name!r} in {root} (runs: {', '.join(runs(store)) or 'none'})")
    found = [version for name in ([run_name] if run_name else runs(store)) for version in Versions(store, name)]
    _print_versions(store, found, as_json=as_json)


@app.command("show")
def show_version(
    name: Annotated[str, typer.Argument(metavar="VERSION", help="RUN, RUN@latest, RUN@3, or digits of an id")],
    root: Root = Path("store"),
    as_json: Json = False,
) -> None:
    """Show one version: datasets, checks, metrics, parents."""
    version = find(Store(root), name)
    print(version.model_dump_json(indent=1)) if as_json else show.version(Store(root), version)


@app.command()
def rows(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="VERSION:generations, or generations/DIGITS")],
    where: Annotated[str | None, typer.Option(help="an SQL condition on the columns")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 10,
    root: Root = Path("store"),
    as_json: Json = False,
) -> None:
    """Look at the rows of a dataset."""
    store = Store(root)
    found = show.select(store, _handle(store, name), where=where, limit=limit)
    print(json.dumps(found.to_dicts(), indent=1)) if as_json else show.frame(found)


@app.command("verify")
def verify_content(
    name: Annotated[str | None, typer.Argument(metavar="[X]", help="a version or a dataset; everything, if left out")] = None,
    root: Root = Path("store"),
    as_json: Json = False,
) -> None:
    """Recompute every checksum and fingerprint of a version and its parents, of a dataset, or of the whole store."""
    store = Store(root)
    if name is None:
        checked = {
            f"{version.run}@{version.number}": verify(store, version) for run in runs(store) for version in Versions(store, run)
        }
        for kind in [path.name for path in sorted((store.root / "datasets").glob("*"))] + ["models", "sources"]:
            checked |= {show.label(handle): store.verify(handle).bytes() for handle in store.handles(kind)}
    elif "/" in name or ":" in name:
        checked = {name: store.verify(_handle(store, name)).bytes()}
    else:
        checked = {name: verify(store, find(store, name))}
    print(json.dumps(checked, indent=1)) if as_json else show.verified(checked)


@app.command()
def bandit(
    out: Annotated[Path, typer.Option(help="folder that gets the figures and tables")] = Path("docs/bandit"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    set_: Set = None,
    root: Root = Path("store"),
    as_json: Json = False,
) -> None:
    """Compare all algorithms on bandits whose solution is known: two datasets, figures, tables."""
    processes = min(os.cpu_count() or 1, BANDIT_PROCESSES)
    config = bandit_config(set_ or (), root=str(root), seed=seed, workers={"processes": processes, "device": "cpu"})
    with _prefect(Path(config.root)):
        from flows.bandit import bandit as study
        from tasks.running import start

        with start(config) as here:
            made = study(here.config, out)
            outcomes = here.outcomes()
            here.terminal.line(f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache; see {out}")
            found = {name: {**handle.model_dump(), "path": str(here.store.path(handle))} for name, handle in made.items()}
            print(json.dumps(found, indent=1)) if as_json else show.datasets(found)


@app.command()
def bootstrap(
    out: Annotated[Path, typer.Argument(help="folder that gets `base`, `reward` and the prompts")] = Path("models"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the demo's base policy, reward model and prompts from nothing."""
    with _prefect(Path("store")):
        from flows.bootstrap import bootstrap as make

        print(json.dumps(make(out, seed), indent=1))


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error, never a traceback."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except WindError as error:
        _fail(str(error), error.exit_code)
    except USAGE_ERROR as error:
        _fail(error.format_message(), 2)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{place}; free space or permissions, then rerun: finished shards are kept", 1)
    except KeyboardInterrupt:
        _fail("interrupted; rerun to go on from the finished shards", 130)


def _distill(config: DistillConfig, *, as_json: bool, refresh: str | None = None) -> None:
    with _prefect(Path(config.root)):
        from flows.distill import distill
        from tasks.running import start

        with start(config, refresh=refresh) as here:
            atomic_write(here.store.root / "runs" / config.run / "config.json", config.model_dump_json(indent=1).encode())
            made = distill(here.config)
            outcomes = here.outcomes()
            here.terminal.line(f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache")
            _print_versions(here.store, list(made), as_json=as_json)


def _study(
    name: str, trials: "list[list[Cell]]", seeds: list[int], *, target: float, metrics: str, out: Path | None, as_json: bool
) -> None:
    from flows import report

    drawn = report.known_metrics(metrics)
    config = trials[0][0].config
    with _prefect(Path(config.root)):
        from flows.compare import study
        from tasks.running import start

        with start(config.model_copy(update={"run": name})) as here:
            found = study(name, trials, seeds)
            outcomes = found.outcomes()
            here.terminal.line(f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache")
            made = report.report(here.store, found, target=target, metrics=drawn)
            if as_json:
                print(json.dumps([standing.model_dump(mode="json") for standing in made.standings], indent=1))
            else:
                report.show(made)
            if out is not None:
                report.write(made, found, f"wind {shlex.join(sys.argv[1:])}", out)


def _seeds(text: str) -> list[int]:
    seeds = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(seeds) < len(text.split(",")) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r} must be different whole numbers, separated by commas: 0,1,2")
    return seeds


@contextmanager
def _prefect(root: Path) -> Iterator[None]:
    """A Prefect API for the block; Prefect itself is imported while an embedded server starts."""
    home = (root / "prefect").absolute()
    for name, value in {**QUIET, "PREFECT_HOME": str(home)}.items():
        os.environ.setdefault(name, value)
    with prefect_api(home) as server:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        if server is not None:
            server.wait()
        try:
            yield
        finally:
            # What they still hold would be lost, noisily, with an embedded server.
            APILogWorker.drain_all(timeout=SECONDS_TO_DRAIN)
            EventsWorker.drain_all(timeout=SECONDS_TO_DRAIN)


def _load(path: Path, overrides: list[str] | None, iterations: int | None) -> DistillConfig:
    extra = [] if iterations is None else [f"iterations={iterations}"]
    return load_config(path, [*(overrides or []), *extra])


def _handle(store: Store, name: str) -> AnyHandle:
    """The dataset called VERSION:NOUN or NOUN/DIGITS."""
    version, colon, dataset = name.rpartition(":")
    if colon:
        handles = find(store, version).handles()
        if dataset not in handles:
            raise ConfigError(f"{version} has no dataset {dataset!r}: it has {', '.join(handles)}")
        return handles[dataset]
    kind, _, digits = name.partition("/")
    matches = [handle for handle in store.handles(kind) if digits and handle.fingerprint.startswith(digits)]
    if len(matches) != 1:
        raise ConfigError(f"{name!r} names {len(matches)} datasets in {store.root}: give VERSION:NOUN, or NOUN/ and more digits")
    return matches[0]


def _print_versions(store: Store, found: list[Version], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([version.model_dump(mode="json") for version in found], indent=1))
    else:
        show.versions(store, found)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
