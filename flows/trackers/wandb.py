"""Weights & Biases, offline or online."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import wandb

from flows.trackers.reports import Report, Sample


def log(section: dict[str, Any], report: Report, folder: Path) -> None:
    """Log the report to the run whose id is its key.

    A step is the number of a version, which only grows; panels are over the iteration, which may
    repeat.
    """
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ[f"WANDB_{name}_DIR"] = str(folder / name.lower())
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="wind",
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=section["project"],
        entity=section["entity"],
        mode=section["mode"],
        dir=folder,
        id=report.key,
        name=report.run,
        resume="allow" if section["mode"] == "online" else None,
        config=report.config,
        settings=settings,
    )
    run.define_metric("iteration")
    run.define_metric("*", step_metric="iteration")
    run.config.update(report.links(), allow_val_change=True)  # type: ignore[no-untyped-call]
    logged: dict[str, Any] = {"iteration": report.iteration, **report.numbers}
    if report.samples:
        columns: list[str | int] = list(Sample.model_fields)
        rows: list[Iterable[Any]] = [list(each.model_dump().values()) for each in report.samples]
        logged["samples"] = wandb.Table(columns=columns, data=rows)
    run.log(logged, step=report.number)
    run.finish()
