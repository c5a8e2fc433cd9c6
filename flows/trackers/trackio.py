"""Trackio, in a local database."""

import os
from pathlib import Path
from typing import Any

from flows.trackers.reports import Report, Sample


def log(section: dict[str, Any], report: Report, folder: Path) -> None:
    """Log the report to the run that is named after ours and its key."""
    os.environ["TRACKIO_DIR"] = str(folder)
    # it reads the variable while it is imported
    import pandas as pd
    import trackio

    trackio.init(
        project=section["project"],
        name=f"{report.run}-{report.key}",
        resume="allow",
        config=report.config | report.links(),
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    logged: dict[str, Any] = dict(report.numbers)
    if report.samples:
        rows = pd.DataFrame([each.model_dump() for each in report.samples])
        logged["samples"] = trackio.Table(dataframe=rows[list(Sample.model_fields)])
    trackio.log(logged | report.links(), step=report.iteration)
    trackio.finish()  # type: ignore[no-untyped-call]
