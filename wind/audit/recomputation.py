"""Why a dataset was, or would be, recomputed.

A dataset is recomputed if, and only if, a part of its key changed: an input, a field of its spec,
or the source of a module that computes it. `reasons` names those parts, both for a computation that
was made and for a job that is only planned.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from wind.audit.changes import changes
from wind.audit.lineage import chain, named, used
from wind.code.observed import Observed
from wind.errors import DatasetError
from wind.records import Record
from wind.stages import Job
from wind.store.computations import Computation, computation_of
from wind.store.datasets import Store
from wind.store.versions import Version, Versions

HEX: Final = re.compile(r"^[0-9a-f]{32,64}$")
SHOWN: Final = 60  # characters of a value in a reason


class Recomputed(Record):
    """A dataset that another computation produced than before."""

    dataset: str
    why: list[str]


class ComputedVersion:
    """A version with the computations that produced its datasets."""

    def __init__(self, store: Store, version: Version) -> None:
        self.datasets = named(store, version)
        self._keys = used(store, [version])
        self._version = version
        self._store = store
        self.computations = {
            name: found for name in self.datasets if (found := self._computation(name)) is not None
        }

    def knows_modules(self, dataset: str) -> bool:
        """Tell whether the modules that computed `dataset` are recorded.

        The record of a computation lists them; a manifest does not.
        """
        return dataset in self.computations and bool(self.computations[dataset].modules)

    def modules(self, datasets: Iterable[str]) -> dict[str, str]:
        """Return the source digest of every module that computed one of `datasets`."""
        return {
            name: value
            for each in datasets
            for name, value in sorted(self.computations[each].modules.items())
        }

    def packages(self) -> dict[str, str]:
        """Return the version of every package, comma-separated where datasets differ in it."""
        found: dict[str, set[str]] = {}
        for each in self.computations.values():
            here = {
                "python": each.provenance.get("python", ""),
                **each.provenance.get("packages", {}),
            }
            for name, version in here.items():
                found.setdefault(name, set()).add(str(version))
        return {
            name: ", ".join(sorted(filter(None, versions)))
            for name, versions in sorted(found.items())
        }

    def provenance(self, name: str) -> str | None:
        """Return what the computations recorded as `name`, comma-separated where they differ."""
        values = {
            str(each.provenance[name])
            for each in self.computations.values()
            if name in each.provenance
        }
        return ", ".join(sorted(values)) or None

    def _computation(self, name: str) -> Computation | None:
        """Return the computation of the dataset `name`.

        None if it is not known, or if it made this dataset only beside another.
        """
        handle = self.datasets[name]
        try:
            found = computation_of(
                self._store, handle, self._version.computations.get(name, self._keys.get(handle))
            )
        except DatasetError:
            return None
        return found if found is not None and found.dataset == handle else None


def newest(store: Store, run: str, iteration: int | None) -> ComputedVersion | None:
    """Find the version of `run` to compare a plan with.

    Of the versions with `iteration`, or of all if it is None, that is the last one in the chain of
    the tag `latest`, or else the last one published.
    """
    versions = Versions(store, run)
    published = list(versions)
    tagged = versions.tagged("latest")
    known = [*published, *(chain(store, tagged) if tagged else [])]
    of_iteration = [
        version for version in known if iteration is None or version.content.iteration == iteration
    ]
    return ComputedVersion(store, of_iteration[-1]) if of_iteration else None


def reasons(before: Computation | None, after: Computation | Job) -> list[str]:
    """List what changed in `after`; empty if nothing did.

    Fields of the spec come first, then modules, inputs, and what was observed to be used.
    """
    if before is None:
        return ["never computed"]
    if before.stage != after.stage:
        return [f"computed by the stage {after.stage} in place of {before.stage}"]
    inputs, fields = [], []
    for change in changes(before.spec, after.spec):
        if change.is_input():
            inputs.append(f"input {change.name} changed")
        else:
            fields.append(f"{change.name} {_shown(change.before)} -> {_shown(change.after)}")
    if before.modules and after.modules:
        code = [
            f"code of {change.name} {change.verb()}"
            for change in changes(before.modules, after.modules)
        ]
    else:
        code = ["code changed"] if before.code != after.code else []
    observed = (
        _observed_changes(before.observed, after.observed) if isinstance(after, Computation) else []
    )
    return fields + code + inputs + observed


def recomputed(before: ComputedVersion, after: ComputedVersion) -> Iterator[Recomputed]:
    """Yield the datasets that were recomputed since `before`, with the reasons."""
    for name, computation in after.computations.items():
        old = before.computations.get(name)
        if old is None or old.key() != computation.key() or old.modules != computation.modules:
            if why := reasons(old, computation):
                yield Recomputed(dataset=name, why=why)
        elif before.datasets[name] != after.datasets[name]:
            yield Recomputed(
                dataset=name,
                why=["computed again from the same, with other content: it is not deterministic"],
            )


def _observed_changes(before: Observed, after: Observed) -> list[str]:
    return [
        f"{prefix}{change.name} {change.verb()}"
        for prefix, then, now in (
            ("", before.files, after.files),
            ("variable ", before.variables, after.variables),
        )
        for change in changes(then, now)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, str) and HEX.fullmatch(value):
        return value[:12]
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
