"""The dataset version of an iteration.

It is published last, when everything it names is intact and checked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.alarms import tested_alarms
from tasks.pages import if_the_server_answers
from tasks.run import Run, current_run
from tasks.sources import import_policy
from tasks.training import moved_anchor
from wind.audit.changes import setting_changes
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError, DatasetError
from wind.gates import refusals
from wind.store.handles import Dataset, Model, label
from wind.store.versions import Content, Version, Versions, history


@dataclass(frozen=True)
class Beginning:
    """Starting point of a run's first iteration."""

    initial: Model  # policy of the very first iteration
    policy: Model
    anchor: Model  # moving average of a reference of kind ema
    after: Version | None = None  # version that the run continues

    def datasets(self) -> Mapping[str, Dataset]:
        """Return the datasets of the iteration before; none before the first."""
        return self.after.content.datasets if self.after else {}


def beginning(config: DistillConfig, base: Version | None) -> Beginning:
    """Return the starting point of a run.

    This is the base policy of `config` or, given a version `base`, where that version ended. Raises
    ConfigError if `base` is not before the last iteration, and DatasetError if a model that is
    needed is no longer there.
    """
    if base is None:
        policy = import_policy(config.policy)
        return Beginning(policy, policy, policy)
    here, content, name = current_run(), base.content, f"{base.run}@{base.number}"
    here.last = base
    if content.iteration >= config.iterations:
        raise ConfigError(
            f"{name} is iteration {content.iteration}, and iterations is {config.iterations}: "
            f"to continue it, set --iterations {content.iteration + 1} or more"
        )
    if "training" not in content.datasets:
        raise ConfigError(
            f"{name} is an evaluation, which trained nothing that could be continued: give its "
            "model as policy.path"
        )
    begin = Beginning(
        initial=history(here.store, base)[0].content.model_in,
        policy=content.model_out,
        anchor=moved_anchor(content.datasets["training"], content.reference),
        after=base,
    )
    for model in (
        begin.initial,
        begin.policy,
        *([begin.anchor] if config.reference.kind == "ema" else []),
    ):
        if not here.store.pin_if_whole(model):
            why = (
                "was dropped by a retention policy"
                if here.store.is_dropped(model)
                else "is not whole"
            )
            raise DatasetError(
                f"{name} cannot be continued: its {label(model)} {why}; `wind rerun {base.run} "
                "--from training` first"
            )
    return begin


def tell_changes(begin: Beginning, prompts: Dataset) -> None:
    """Print how this run differs from the version that it continues."""
    here, base = current_run(), begin.after
    if base is None or here.planning:
        return
    theirs, ours = base.content, here.config
    changes = setting_changes((theirs.recipe, theirs.defaults), (ours.recipe(), ours.defaults()))
    changed = [f"{change.name} {change.after} (was {change.before})" for change in changes]
    if prompts != base.content.datasets["prompts"]:
        changed.append("other prompts")
    here.terminal.line(
        f"continuing {base.run}@{base.number} with {', '.join(changed) or 'the same recipe'}"
    )


def iterations(begin: Beginning, count: int) -> Iterator[int]:
    """Yield the iterations up to `count`, the first one after `begin`.

    Tasks called within an iteration carry its number in their names.
    """
    here = current_run()
    here.iteration = begin.after.content.iteration if begin.after else 0
    while here.iteration < count:
        here.iteration += 1
        if not here.planning:
            here.terminal.line(f"iteration {here.iteration} of {count}")
        yield here.iteration
    here.iteration = 0


def go_back(begin: Beginning, config: DistillConfig, best: Version | None) -> Beginning:
    """Go on from `best` with `config`, or from where the run began, and return the new beginning.

    The next version says which one it is instead of.
    """
    here = current_run()
    after = best or begin.after
    here.instead_of = here.last.id if here.last else None
    here.config, here.last = config, after
    here.iteration = after.content.iteration if after else 0
    if best is None:
        return begin
    return Beginning(
        initial=begin.initial,
        policy=best.content.model_out,
        anchor=moved_anchor(best.content.datasets["training"], best.content.reference),
        after=best,
    )


def kept() -> Sequence[Version]:
    """Return the versions of this run that lead up to the last one, one per iteration."""
    here = current_run()
    found: list[Version] = []
    before = here.last.id if here.last else None
    for version in reversed(here.published):
        if version.id == before:
            found.insert(0, version)
            before = version.content.previous
    return found


def publish_version(
    iteration: int,
    datasets: Mapping[str, Dataset],
    *,
    model_in: Model,
    model_out: Model,
    reference: Model,
) -> Version | None:
    """Publish the version of `iteration` and return it.

    In a plan, this is the version that the run has already, or None.
    """
    here = current_run()
    content = Content(
        iteration=iteration,
        recipe=here.config.recipe(),
        defaults=here.config.defaults(),
        datasets=dict(datasets),
        model_in=model_in,
        model_out=model_out,
        reference=reference,
        previous=here.last.id if here.last else None,
    )
    if here.planning:
        known = Versions(here.store, here.config.run) if here.config.gates else ()
        here.last = next((each for each in known if each.id == content.id()), None)
        return here.last
    here.last = publish.with_options(task_run_name=f"publish version {iteration}")(content)
    here.published.append(here.last)
    here.instead_of = None
    return here.last


@task(cache_policy=NO_CACHE, persist_result=False)
def publish(content: Content) -> Version:
    """Publish a version with `content` and return it.

    The run's `latest` tag then points to it.
    """
    here = current_run()
    metrics = {
        row["metric"]: {name: row[name] for name in ("value", "low", "high", "n")}
        for row in here.store.read(content.datasets["metrics"]).to_pylist()
    }
    manifests = {name: here.store.manifest(dataset) for name, dataset in content.datasets.items()}
    checks = {name: here.checks[dataset.fingerprint] for name, dataset in content.datasets.items()}
    alarms = tested_alarms(content.datasets.get("alarms"))
    before = history(here.store, here.last, is_whole=False) if here.last else []
    refused = refusals(here.config.gates, metrics, alarms, before)
    version = Versions(here.store, here.config.run).publish(
        content,
        checks={name: check.expectations for name, check in checks.items()},
        check_results={name: check.key for name, check in checks.items()},
        warnings={name: list(check.warnings) for name, check in checks.items() if check.warnings},
        alarms={name: said for name, said in alarms.items() if said},
        gates={refusal.name: refusal.reason for refusal in refused},
        instead_of=here.instead_of,
        metrics=metrics,
        seconds={
            name: manifest.provenance.get("seconds", 0.0) for name, manifest in manifests.items()
        },
        computations={
            event.name: event.key
            for event in here.events
            if event.key and event.iteration in (None, content.iteration)
        },
    )
    _show(here, version)
    return version


def _show(here: Run[DistillConfig], version: Version) -> None:
    """Show the iteration's metrics and datasets as tables in Prefect's UI."""
    numbers = [{"metric": name, **values} for name, values in version.metrics.items()]
    datasets = [
        {
            "dataset": name,
            "rows": dataset.rows,
            "fingerprint": dataset.fingerprint[:12],
            "seconds": round(version.seconds[name], 1),
        }
        for name, dataset in version.content.datasets.items()
    ]
    name = f"{version.run}@{version.number}"
    with if_the_server_answers():
        create_table_artifact(
            numbers, key="metrics", description=f"{name}: iteration {version.content.iteration}"
        )
        create_table_artifact(datasets, key="datasets", description=f"{name}, id {version.id[:12]}")
