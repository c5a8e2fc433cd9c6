"""Data Docs of a run: an index and a page per check.

This needs no Great Expectations: the pages were rendered when the checks ran, and are copied. Pages
that were not rendered here may contain anything, and are left out. The pages load nothing from
elsewhere, so the folder can be sent or served as it is.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader

from data_checks.results import CheckResult, all_recorded, contents, page_of, recorded
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.versions import Version, Versions, runs

Verdict = Literal["passed", "warned", "failed", "unknown"]


@dataclass(frozen=True)
class Check:
    """One check result, as the index shows it."""

    page: str  # relative to the index; empty if there is none
    verdict: Verdict
    expectations: int
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """The checks of one dataset of one version."""

    check: Check  # the one before the version was published
    again: tuple[Check, ...]  # later ones, under other thresholds or suites
    shifts: tuple[dict[str, Any], ...]


def docs(store: Store, run: str) -> dict[str, bytes]:
    """Build the files of a run's Data Docs, by name.

    The index is `index.html`.
    Raises ConfigError if no version of `run` was published, and DatasetError if a result cannot be
    read.
    """
    if run not in runs(store):
        raise ConfigError(
            f"no run is called {run!r} in {store.storage.url} "
            f"(runs: {', '.join(runs(store)) or 'none'})"
        )
    versions = list(Versions(store, run))
    files: dict[str, bytes] = {}
    cells = {
        (version.number, name): _cell(store, version, name, handle, files)
        for version in versions
        for name, handle in version.content.datasets.items()
    }
    names = list(dict.fromkeys(name for _, name in cells))
    every = [check for cell in cells.values() for check in (cell.check, *cell.again)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    index = environment.get_template("docs.j2").render(
        run=run,
        versions=versions,
        names=names,
        cells=cells,
        counts=Counter(check.verdict for check in every),
        expectations=sum(check.expectations for check in every),
        drifted=_drifted(versions, names, cells),
        found=any(check.failures or check.warnings for check in every),
    )
    return {"index.html": index.encode(), **files}


def _cell(
    store: Store, version: Version, name: str, handle: Dataset, files: dict[str, bytes]
) -> Cell:
    """Collect the checks of one dataset, and add their pages to `files`."""
    key = version.check_results.get(name)
    own = recorded(store, handle, key)
    others = [
        result for result in all_recorded(store, handle) if own is None or result.key != own.key
    ]
    others = [
        result for result in others if key is None or own is None or result.previous == own.previous
    ]
    check = Check("", "unknown", version.checks.get(name, 0))
    if own is not None:
        check = _check(store, own, f"{version.number:04d}/{name}.html", files)
    again = tuple(
        _check(store, other, f"{version.number:04d}/{name}-{other.key[:12]}.html", files)
        for other in others
    )
    content = contents(store, handle, key) or {}
    return Cell(check, again, tuple(content.get("shifts", ())))


def _check(store: Store, result: CheckResult, page: str, files: dict[str, bytes]) -> Check:
    content = page_of(store, result)
    if content is not None:
        files[page] = content
    else:
        page = ""
    verdict: Verdict = "failed" if not result.success else "warned" if result.warnings else "passed"
    return Check(page, verdict, result.expectations, result.failures, result.warnings)


def _drifted(
    versions: list[Version], names: list[str], cells: dict[tuple[int, str], Cell]
) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """List the drifting quantities, each with its row of every version.

    A quantity is named with its dataset; a version without a previous one has None.
    """
    found = []
    for name in names:
        of_versions = [cells.get((version.number, name)) for version in versions]
        rows = [
            {row["quantity"]: row for row in cell.shifts} if cell else {} for cell in of_versions
        ]
        for quantity in dict.fromkeys(quantity for row in rows for quantity in row):
            found.append((f"{name}: {quantity}", [row.get(quantity) for row in rows]))
    return found
