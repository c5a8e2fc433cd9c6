"""The dataset version of an iteration: published last, when everything it names is whole and checked."""

from collections.abc import Iterator, Mapping

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.running import Running, running
from wind.config import DistillConfig
from wind.datasets import Dataset, Model
from wind.versions import Content, Version, Versions


def iterations(count: int) -> Iterator[int]:
    """The iterations 1..`count`; tasks called within one carry its number in their names."""
    here = running()
    for iteration in range(1, count + 1):
        here.iteration = iteration
        if not here.planning:
            here.terminal.line(f"iteration {iteration} of {count}")
        yield iteration
    here.iteration = 0


def publish_version(
    versions: list[Version], iteration: int, datasets: Mapping[str, Dataset], model_in: Model, model_out: Model, reference: Model
) -> None:
    """Append the version of `iteration` to `versions`, whose last is the iteration before."""
    here = running()
    if here.planning:
        return
    content = Content(
        iteration=iteration,
        recipe=recipe(here.config),
        datasets=dict(datasets),
        model_in=model_in,
        model_out=model_out,
        reference=reference,
        previous=versions[-1].id if versions else None,
    )
    versions.append(publish.with_options(task_run_name=f"publish version {iteration}")(content))


@task(cache_policy=NO_CACHE, persist_result=False)
def publish(content: Content) -> Version:
    """The published version with `content`; the run's `latest` tag points to it."""
    here = running()
    metrics = {
        row["metric"]: {name: row[name] for name in ("value", "low", "high", "n")}
        for row in here.store.read(content.datasets["metrics"]).to_pylist()
    }
    manifests = {name: here.store.manifest(dataset) for name, dataset in content.datasets.items()}
    version = Versions(here.store, here.config.run).publish(
        content,
        checks={name: here.checks[dataset.fingerprint] for name, dataset in content.datasets.items()},
        metrics=metrics,
        seconds={name: manifest.provenance.get("seconds", 0.0) for name, manifest in manifests.items()},
        computations={
            event.name: event.key for event in here.events if event.key and event.iteration in (None, content.iteration)
        },
    )
    _show(here, version)
    return version


def recipe(config: DistillConfig) -> dict[str, object]:
    """The config without paths, names, iteration count, check thresholds and worker settings: what determines content."""
    fields = config.model_dump(mode="json", exclude={"run", "root", "iterations", "checks", "workers"})
    for section, name in (("policy", "path"), ("prompts", "source"), ("prompts", "template"), ("reward", "path")):
        fields[section].pop(name, None)  # content enters by fingerprint, through the datasets
    return fields


def _show(here: Running[DistillConfig], version: Version) -> None:
    """The iteration's metrics and datasets as tables in the Prefect UI."""
    numbers = [{"metric": name, **values} for name, values in version.metrics.items()]
    create_table_artifact(
        numbers, key="metrics", description=f"{version.run}@{version.number}: iteration {version.content.iteration}"
    )
    datasets = [
        {
            "dataset": name,
            "rows": dataset.rows,
            "fingerprint": dataset.fingerprint[:12],
            "seconds": round(version.seconds[name], 1),
        }
        for name, dataset in version.content.datasets.items()
    ]
    create_table_artifact(datasets, key="datasets", description=f"{version.run}@{version.number}, id {version.id[:12]}")
