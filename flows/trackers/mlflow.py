"""MLflow, by a tracking server."""

import os
from pathlib import Path
from typing import Any

# One answer is awaited, and asked for once more: the process has little time.
for name, value in (("TIMEOUT", "20"), ("MAX_RETRIES", "1")):
    os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)

from mlflow import MlflowClient  # noqa: E402  (it reads the variables while it is imported)
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import RestException  # noqa: E402

from flows.trackers.reports import Report, Sample  # noqa: E402

KEY = "wind.key"
# of one request to the server
MOST_METRICS = 1000
MOST_PARAMS = 100
MOST_CHARACTERS = 500


def log(section: dict[str, Any], report: Report, folder: Path) -> None:
    """Log the report to the server's run that is tagged with its key."""
    client = MlflowClient(section["url"])
    run_id = _run(client, section["experiment"], report)
    published = int(report.published * 1000)
    metrics = [
        Metric(name, number, published, report.iteration) for name, number in report.numbers.items()
    ]
    tags = [RunTag(name, value) for name, value in report.links().items()]
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
    client.log_batch(run_id, tags=tags)
    if report.samples:
        columns = {
            name: [getattr(each, name) for each in report.samples] for name in Sample.model_fields
        }
        client.log_table(run_id, columns, f"samples/{report.number:04d}.json")
    client.set_terminated(run_id)


def _run(client: MlflowClient, experiment: str, report: Report) -> str:
    """Return the id of the report's run, which begins with its config."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = _created(client, experiment) if found is None else found.experiment_id
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{report.key}'", max_results=1)
    if runs:
        run_id: str = runs[0].info.run_id
        return run_id
    made = client.create_run(experiment_id, run_name=report.run, tags={KEY: report.key})
    params = [Param(name, str(value)[:MOST_CHARACTERS]) for name, value in report.config.items()]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(made.info.run_id, params=params[start : start + MOST_PARAMS])
    created: str = made.info.run_id
    return created


def _created(client: MlflowClient, experiment: str) -> str:
    """Create the experiment, unless another run does at the same time."""
    try:
        experiment_id: str = client.create_experiment(experiment)
    except RestException:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        experiment_id = found.experiment_id
    return experiment_id
