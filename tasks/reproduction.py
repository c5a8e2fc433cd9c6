"""Reproduction of a stored dataset from the spec in its manifest.

The dataset is computed again in a store of its own and compared with the original.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.devices import device_of
from tasks.workers import Pool, kind_of
from wind.audit.reproduce import differences
from wind.code.digests import code_digest
from wind.code.named_code import NamedCode, functions_in, require_leave
from wind.code.packages import packages
from wind.config.runs import RunConfig
from wind.errors import ConfigError
from wind.stages import Job, Place, parse, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, Manifest, label
from wind.store.provenance import git_state


@dataclass(frozen=True)
class Reproduction:
    """Result of computing a dataset again."""

    recorded: str  # fingerprint of the stored dataset
    computed: str  # fingerprint of the new one
    differences: list[str]  # in content; empty if the dataset was reproduced
    changed: list[str]  # in what computed it, between then and now


def reproduced(
    store: Store,
    handle: Dataset,
    scratch: Path | None = None,
    *,
    own: Collection[NamedCode] = (),
    run_code: bool = False,
) -> Reproduction:
    """Compute `handle` again and compare it with what is stored.

    This runs in a temporary store below `scratch`, by default below the store. The inputs are read
    where they are. The spec is data: a function that it names runs only if it is one of the user's
    `own`, or with `run_code`. Raises ConfigError if the spec names any other function or if the
    manifest keeps no spec, and passes on whatever the stage itself raises.
    """
    before = store.manifest(handle)
    with _scratch(store, scratch) as folder:
        job = _job(before, label(handle), folder.absolute() / "store")
        _, spec, again = parse(job)
        # a judge's function is one of the spec's reward
        known = {each.name for each in own}
        unknown = [each for each in functions_in(spec) if each.name not in known]
        require_leave(f"the spec of {label(handle)}", unknown, run_code=run_code)
        for parent in spec.parents().values():
            again.path(parent).parent.mkdir(parents=True, exist_ok=True)
            if not again.path(parent).is_symlink():
                os.symlink(store.path(parent).absolute(), again.path(parent))
        made = _computed(job, folder / "logs")
        if made.name != handle.name:  # the training inside an on-policy stage
            made = Dataset.model_validate(again.manifest(made).outputs[handle.name].model_dump())
        return Reproduction(
            recorded=handle.fingerprint,
            computed=made.fingerprint,
            differences=[
                *differences(store, handle, again, made),
                *_of_outputs(store, before, again, again.manifest(made)),
            ],
            changed=list(_changed(before, job, again)),
        )


@contextmanager
def _scratch(store: Store, below: Path | None) -> Iterator[Path]:
    """Make a folder below `below`, or below the store, and remove it after the block."""
    if below is None:
        folder = store.scratch("reproduced")
    else:
        below.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="reproduced-", dir=below))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _job(manifest: Manifest, name: str, root: Path) -> Job:
    """Return the job that `manifest` records, to run in the store at `root`.

    Raises ConfigError, naming the dataset `name`, if it records no spec.
    """
    stage, spec = manifest.computed_by.get("stage"), manifest.computed_by.get("spec")
    if not isinstance(stage, str) or not isinstance(spec, dict):
        raise ConfigError(f"{name} was published without a spec: it cannot be computed again")
    place = Place(root=str(root), device=device_of(RunConfig(run="reproduction")))
    return Job(stage=stage, spec=spec, place=place, code=code_digest(stage))


def _of_outputs(store: Store, before: Manifest, again: Store, after: Manifest) -> Iterator[str]:
    """Yield how the outputs of two computations differ."""
    for name, output in before.outputs.items():
        if name not in after.outputs:
            yield f"its output {name} was not made"
            continue
        for each in differences(store, output, again, after.outputs[name]):
            yield f"{name}: {each}"


def _computed(job: Job, logs: Path) -> Dataset:
    """Compute the dataset of `job` where a run would."""
    kind = kind_of(job)
    if kind is None:
        return run(job, lambda done, total: None)
    with closing(Pool(RunConfig(run="reproduction").workers, job.place.device, logs)) as pool:
        return pool.compute(job, kind, lambda done, total: None)


def _changed(before: Manifest, job: Job, again: Store) -> Iterator[str]:
    """Yield what has changed in the code, packages and interpreter."""
    if before.computed_by.get("code", job.code) != job.code:
        yield f"the code of {job.stage} is {job.code[:12]}, was {before.computed_by['code'][:12]}"
    then = before.provenance
    now = {"python": platform.python_version(), **git_state(again)}
    for name in ("python", "git_revision", "git_dirty"):
        if name in then and name in now and then[name] != now[name]:
            yield f"{name} is {now[name]}, was {then[name]}"
    versions = then.get("packages", {})
    for name in sorted({*versions, *packages()} if versions else ()):
        if versions.get(name) != packages().get(name):
            yield (
                f"{name} is {packages().get(name, 'not there')}, was "
                f"{versions.get(name, 'not there')}"
            )
