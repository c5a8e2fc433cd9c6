"""What a stage is: a spec in, shards of rows out, one dataset published at the end.

Every stage module offers one `STAGE`. A stage runs the same way from a Prefect task, in a worker
process, or by hand: `python -m wind.generations spec.json`, where the file is a `Job`, as kept in
the manifest of every dataset under `computed_by`.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from wind.code.digests import code_digest, code_of, refuse_edited
from wind.code.observed import Observed, noting
from wind.errors import OUT_OF_MEMORY, ConfigError, StageError, WindError, first_line
from wind.files import read_plain
from wind.nesting import json_value
from wind.records import Record
from wind.store.computations import Computation, is_recorded, key_of, made_by, record, used_by
from wind.store.datasets import Store
from wind.store.handles import HANDLE, AnyHandle, Dataset
from wind.store.partial import Partial
from wind.store.provenance import environment, provenance, reset_peak_memory

STAGES = (  # of a run, in order
    "prompts",
    "generations",
    "rewards",
    "win_rates",
    "selections",
    "logps",
    "training",
    "rollouts",
    "evaluation",
    "metrics",
)
# computed from finished runs, or from none: no part of any run
STUDIES = ("comparison", "bandit", "rates")


class Progress(Protocol):
    """Told now and then how much of a shard is done, in the stage's own unit."""

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` of `total` is finished."""


class Spec(Record):
    """Everything that determines a stage's content, and nothing else: handles, config sections,
    seeds.
    """

    @classmethod
    def of(cls, config: Record, inputs: Mapping[str, Any], **given: Any) -> Self:
        """Fill every field by its name from `given`, else `inputs`, else the sections of `config`.

        What the spec does not declare is left out, so that one mapping of an iteration's inputs
        serves all of its stages. Raises ValidationError for a field that is found nowhere.
        """
        sections = dict(config)
        found = {name: sections[name] for name in cls.model_fields if name in sections}
        found |= {name: inputs[name] for name in cls.model_fields if name in inputs}
        return cls(**(found | given))

    def parents(self) -> dict[str, AnyHandle]:
        """The stored inputs, by field name."""
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), AnyHandle)
        }


S = TypeVar("S", bound=Spec)


class Place(Record):
    """Where a stage runs: what can never change its content."""

    root: str
    device: str = "cpu"  # cpu | cuda
    pin_set: str | None = None  # of the run it works for, see `wind.store.pins`
    keep_state: bool = False  # whether a training leaves its last checkpoint
    # whether what other versions of packages computed is to be computed anew
    same_packages: bool = False
    # that one call of a user's function may take; None: any number
    function_seconds: float | None = None


class Job(Record):
    """A stage, its spec and its place: what goes to a worker as JSON."""

    stage: str
    spec: dict[str, Any]
    place: Place
    code: str = ""  # digest of the modules that compute the stage
    # digest of each of them, and of the task's source: to tell later which one changed
    modules: dict[str, str] = {}

    def key(self) -> str:
        """The name of unfinished shards and of the computation's record: the same for the same spec
        and code, anywhere.
        """
        return key_of(self.stage, self.spec, self.code)


# asked for a dataset in place of computing it, once its lock is held
Find = Callable[[Job], Dataset | None]


@dataclass(frozen=True)
class Shard:
    """One shard's rows, cast to the declared schema on writing."""

    table: pa.Table
    schema: pa.Schema | None = None  # where the declared schema has further columns
    # rows that did not make it, with their reason: the dataset `<name>.dropped`
    dropped: pa.Table | None = None
    # what else was published: a training's model
    outputs: Mapping[str, AnyHandle] = field(default_factory=dict)
    # what the finished table no longer tells, summed over shards
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage(Generic[S]):
    """How one dataset is computed."""

    name: str
    spec: type[S]
    shards: Callable[[S, Store], int]  # how many shards the spec has; the same on every call
    compute: Callable[[S, Store, int, Place, Progress], Shard]
    numbers: Callable[[S, pa.Table], dict[str, float]]  # the telling numbers of the finished table


def stage_named(name: str) -> Stage[Any]:
    """The stage whose dataset is called `name`."""
    if name not in (*STAGES, *STUDIES):
        raise ConfigError(
            f"no stage is called {name!r}: the stages are {', '.join((*STAGES, *STUDIES))}"
        )
    stage: Stage[Any] = import_module(f"wind.{name}").STAGE
    return stage


def parse(job: Job) -> tuple[Stage[Any], Any, Store]:
    """The stage of `job`, its validated spec, and the store it works in."""
    stage = stage_named(job.stage)
    try:
        return stage, stage.spec.model_validate(job.spec), Store(job.place.root, job.place.pin_set)
    except ValidationError as error:
        raise ConfigError(f"the spec of {job.stage} is wrong: {first_line(error)}") from error


def missing_shards(job: Job, partial: Partial) -> list[int]:
    """The shards of `job` that are not finished yet, in order; one whose computation used what has
    changed is not.
    """
    stage, spec, store = parse(job)
    shards = stage.shards(spec, store)
    missing = set(partial.missing(shards))
    return [
        index
        for index in range(shards)
        if index in missing or _is_changed(_observed(partial.beside(index)), job)
    ]


def compute_shard(job: Job, index: int, progress: Progress) -> None:
    """Compute shard `index` of `job` and commit it. The caller holds the lock on the unfinished
    dataset.
    """
    stage, spec, store = parse(job)
    partial = store.open_partial(stage.name, job.key())
    with noting() as noted:
        shard = stage.compute(spec, store, index, job.place, progress)
    observed = noted.all()
    refuse_edited(job.stage, job.code or None)
    observed.refuse_changed(job.stage)
    outputs = dict(shard.outputs)
    if shard.dropped is not None:
        outputs["dropped"] = _publish_dropped(store, job, index, shard.dropped)
    named = {name: handle.model_dump() for name, handle in outputs.items()}
    beside = {"outputs": named, "numbers": dict(shard.numbers), "environment": environment(store)}
    beside["observed"] = observed.model_dump(mode="json")
    partial.write(index, shard.table, shard.schema, beside=beside)


def publish(
    job: Job, partial: Partial, started: float, peak_memory_bytes: int | None = None
) -> Dataset:
    """Publish the dataset of `job`, all of whose shards are finished; `started` is the Unix time
    its computation began.
    """
    stage, spec, store = parse(job)
    shards = stage.shards(spec, store)
    outputs: dict[str, AnyHandle] = {}
    numbers: Counter[str] = Counter()
    environments = []
    observed = Observed()
    for index in range(shards):
        beside = partial.beside(index)
        outputs |= {
            name: HANDLE.validate_python(fields) for name, fields in beside["outputs"].items()
        }
        numbers.update(beside["numbers"])
        observed = observed.joined(_observed(beside))
        # none in a shard of an older version
        environments += [beside["environment"]] if "environment" in beside else []
    computed_by = {"stage": job.stage, "code": job.code, "spec": job.spec}
    parents = spec.parents()
    telling = {**numbers, **stage.numbers(spec, partial.table(shards))}
    if wrong := sorted(name for name, value in telling.items() if not math.isfinite(value)):
        raise StageError(
            f"{job.stage}: {wrong[0]} is {telling[wrong[0]]}, so values are too large to be added up or not numbers: "
            "nothing was published; bring rewards to a smaller scale"
        )
    facts = provenance(store, started, peak_memory_bytes, environments)
    if observed.unobserved:
        # what a hit does not depend on, though the rows may
        facts["unobserved"] = list(observed.unobserved)
    made = partial.publish(
        shards,
        parents=parents,
        outputs=outputs,
        computed_by=computed_by,
        numbers=telling,
        provenance=facts,
    )
    record(
        store,
        Computation(
            dataset=made,
            **computed_by,
            modules=job.modules,
            observed=observed,
            parents=parents,
            outputs=outputs,
            numbers=telling,
            provenance=facts,
        ),
    )
    return made


def _observed(beside: Mapping[str, Any]) -> Observed:
    """What the computation of a shard used; nothing is known of a shard of an older version."""
    return Observed.model_validate(beside.get("observed", {}))


def _is_changed(observed: Observed, job: Job) -> bool:
    return bool(observed.changed(packages=job.place.same_packages))


def published(job: Job) -> Dataset | None:
    """What a process that had `job` too has published, if it is whole and recorded, and all that it
    used is as it was.

    To be asked once the lock on the unfinished dataset is held: it may have been held by that
    process until now.
    """
    _, _, store = parse(job)
    for handle in made_by(store, job.stage, job.key()):
        if (
            store.pin_if_whole(handle)
            and not any(store.dropped_models(handle))
            and is_recorded(store, handle, job.key())
            and not _is_changed(used_by(store, handle, job.key()), job)
        ):
            return handle
    return None


def run(job: Job, progress: Progress, find: Find | None = None) -> Dataset:
    """Compute what is missing of `job`, in this process, and publish it; what `find` has is taken
    instead.
    """
    started = time.time()
    reset_peak_memory()
    stage, _, store = parse(job)
    with store.partial(stage.name, job.key()) as partial:
        if find is not None and (found := find(job)) is not None:
            return found
        for index in missing_shards(job, partial):
            compute_shard(job, index, progress)
        return publish(job, partial, started)


def main(name: str) -> None:
    """Run a stage by hand: `python -m wind.<stage> spec.json [--root ROOT] [--device cpu|cuda]`;
    prints the handle.

    The file is a job or the manifest of a dataset, whose recorded spec is then computed again. It
    is data, whoever wrote it: a function that it names runs only with `--run-code`.
    """
    from wind.machine.terminal import ArgumentParser, complain, say  # rich, which no worker needs

    parser = ArgumentParser(
        prog=f"python -m wind.{name}", description=f"Compute the dataset {name} from its spec."
    )
    parser.add_argument("spec", type=Path, help="a job, or a dataset's manifest.json")
    parser.add_argument("--root", default="./store", help="the store (default: ./store)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--run-code", action="store_true", help="run the function that the spec names"
    )
    arguments = parser.parse_args()
    from wind.code.named_code import functions_in, require_leave

    try:
        job = _read_job(name, arguments.spec, Place(root=arguments.root, device=arguments.device))
        require_leave(
            str(arguments.spec), list(functions_in(parse(job)[1])), run_code=arguments.run_code
        )
        say(run(job, lambda done, total: None).model_dump_json())
    except WindError as error:
        complain(f"error: {error}")
        sys.exit(error.exit_code)
    except MemoryError:
        complain(f"error: {OUT_OF_MEMORY}")
        sys.exit(1)


def _read_job(name: str, path: Path, place: Place) -> Job:
    try:
        content = json_value(read_plain(path))
        recorded = content.get("computed_by", content)
        job = Job(stage=recorded["stage"], spec=recorded["spec"], place=place)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is neither a job nor a manifest with a recorded spec: {error!r}"
        ) from error
    if job.stage != name:
        raise ConfigError(f"{path} is a spec of {job.stage}: run python -m wind.{job.stage}")
    return job.model_copy(update={"code": code_digest(name), "modules": code_of(f"wind.{name}")})


def _publish_dropped(store: Store, job: Job, index: int, table: pa.Table) -> Dataset:
    with store.partial(f"{job.stage}.dropped", f"{job.key()}-{index}") as partial:
        partial.write(0, table)
        return partial.publish(
            1,
            parents={},
            computed_by={"stage": job.stage, "code": job.code, "spec": job.spec},
            numbers={},
            provenance={},
        )
