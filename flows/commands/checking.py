"""Commands that repeat and show data checks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows import show
from flows.options import Json, Root, RunCode, Set
from wind.code.named_code import NamedCode, conditions_in, is_own, require_leave
from wind.config.loading import checks_config
from wind.errors import ConfigError, DataCheckError
from wind.files import atomic_write
from wind.machine.terminal import say, say_json
from wind.nesting import json_value
from wind.stages import stage_named
from wind.store.datasets import Store
from wind.store.handles import label
from wind.store.references import find_version
from wind.store.schemas import declared
from wind.store.versions import Version, everywhere

commands = typer.Typer()


@commands.command()
def check(
    name: Annotated[
        str,
        typer.Argument(metavar="VERSION", help="RUN, RUN@latest, RUN@3, or digits of an id."),
    ],
    set_: Set = None,
    run_code: RunCode = False,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Repeat the data checks of a version, without recomputing it.

    It uses the current suites, and the thresholds of the run unless --set
    changes them. The results are kept beside the earlier ones. Python files with
    checks run only if `--set checks.files=[...]` names them, and row conditions
    of a config that somebody else ran only with `--run-code`.
    """
    store = Store(root)
    version = find_version(store, name)
    recorded_checks, foreign = _recorded_checks(store, version.run)
    checks = checks_config(recorded_checks, set_ or ())
    kept = [each for each in conditions_in(checks) if each in foreign]
    require_leave(f"the config of {version.run} in {root}", kept, run_code=run_code)
    from data_checks.validation import recorded, refuse_wrong_checks, validate

    refuse_wrong_checks(checks, _components(store, version))
    before = _before(store, version)
    results = {}
    for noun, handle in version.content.datasets.items():
        try:
            role = stage_named(handle.name).role
            previous = before.get(noun) if role and role.has_drift else None
            results[noun] = validate(handle, store, checks, previous)
        except DataCheckError:
            result = recorded(store, handle)
            assert result is not None, "a failed check is kept before it is raised"
            results[noun] = result
    if as_json:
        say_json({noun: result.model_dump(mode="json") for noun, result in results.items()})
    else:
        show.checks(store, results)
    failed = [result for result in results.values() if not result.success]
    if failed:
        first = (
            f"{label(failed[0].handle)} failed {failed[0].failures[0]}; "
            f"see {store.storage.url}/{failed[0].path}"
        )
        raise DataCheckError(
            f"{len(failed)} of {len(results)} datasets of {version.run}@{version.number} "
            f"fail: {first}"
        )


@commands.command()
def docs(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write the pages to; by default, the run's in the store."),
    ] = None,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Write a page of all data checks of a run.

    Each result gets a page of its own beside it.
    """
    from data_checks.docs import docs as pages

    store = Store(root)
    files = pages(store, run_name)
    folder = f"runs/{run_name}/docs" if out is None else str(out)
    if out is None:
        store.storage.delete(folder)
    for name, content in files.items():
        if out is None:
            store.storage.write(f"{folder}/{name}", content)
        else:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(out / name, content)
    index = (
        f"{folder}/index.html" if out is not None else f"{store.storage.url}/{folder}/index.html"
    )
    say_json({"index": index, "files": len(files)}) if as_json else say(index)


def _recorded_checks(store: Store, run: str) -> tuple[dict[Any, Any], list[NamedCode]]:
    """Return the run's last section `checks`, and its foreign code.

    Python files are removed from the section; the code is that in it, unless this user ran the
    config. A store from elsewhere must not choose what is run.
    """
    name = f"runs/{run}/config.json"
    try:
        content = store.storage.read(name)
        checks = dict(json_value(content).get("checks", {}))
    except FileNotFoundError:
        return {}, []
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{store.storage.url}/{name} is not a config ({error}): restore it or remove it"
        ) from error
    checks.pop("files", None)
    return checks, [] if is_own(content) else list(conditions_in(checks_config(checks)))


def _components(store: Store, version: Version) -> tuple[str, ...]:
    """Return the columns that a version's rewards have for components of the reward."""
    return tuple(
        dict.fromkeys(
            column
            for handle in version.content.datasets.values()
            if (declaration := declared(handle.name)).has_components
            for column in store.open(handle).schema.names
            if column not in declaration.meanings()
        )
    )


def _before(store: Store, version: Version) -> dict[str, Any]:
    """Return the datasets of the previous iteration, if it was published."""
    previous = version.content.previous
    found = next((each for each in everywhere(store) if each.id == previous), None)
    return {} if found is None else found.content.datasets
