"""Data checks between every two stages."""

import sys
import threading
from importlib import import_module

from prefect import task
from prefect.cache_policies import NO_CACHE

from data_checks.results import CheckResult, passed
from tasks.run import current_run
from wind.stages import stage_named
from wind.store.handles import Dataset, label

VALIDATION = "data_checks.validation"


def checked(dataset: Dataset) -> Dataset:
    """Return `dataset` once it passes its suite and its drift limits.

    Drift is measured against the dataset of the same name in the previous iteration. A change to
    the suite or a threshold repeats the check but recomputes nothing. Warnings are printed and kept
    with the result. Raises DataCheckError, which ends the run before the next stage spends
    anything.
    """
    here = current_run()
    if not here.planning:
        role = stage_named(dataset.name).role
        previous = here.previous(dataset) if role and role.has_drift else None
        check = check_dataset.with_options(
            task_run_name=f"check {dataset.name} {here.iteration or ''}"
        )
        result = passed(here.store, dataset, here.config.checks, previous) or check(
            dataset, previous
        )
        here.checks[dataset.fingerprint] = result
        for warning in result.warnings:
            here.terminal.line(f"  warning: {label(dataset)}, {warning}")
    return dataset


def prepare_checks() -> None:
    """Import the data checks in the background while workers compute.

    Importing Great Expectations takes seconds.
    """
    if VALIDATION not in sys.modules:
        threading.Thread(target=import_module, args=(VALIDATION,)).start()


@task(cache_policy=NO_CACHE, persist_result=False)
def check_dataset(dataset: Dataset, previous: Dataset | None) -> CheckResult:
    """Run the suite of `dataset`."""
    # Great Expectations takes seconds to import and is often not needed.
    from data_checks.validation import validate

    here = current_run()
    return validate(dataset, here.store, here.config.checks, previous)
