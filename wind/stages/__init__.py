"""The record of a stage, and its run: a spec in, shards of rows out, one dataset published.

Every stage module has one `STAGE`, which says all that is known of the stage. A stage runs the same
way from a Prefect task, in a worker process, or by hand: `python -m wind.stages FILE`, where the
file is a `Job`, or the manifest of a dataset, which keeps its job under `computed_by`.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from wind.code.digests import refuse_edited
from wind.code.observed import Observed, noting
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError, StageError, first_line
from wind.records import Record
from wind.store.computations import Computation, is_recorded, key_of, made_by, record, used_by
from wind.store.datasets import Store
from wind.store.handles import HANDLE, AnyHandle, Dataset
from wind.store.nouns import STAGES, STUDIES, record_of
from wind.store.partial import Partial
from wind.store.provenance import environment, provenance, reset_peak_memory
from wind.store.schemas import Declaration


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


# Kinds of workers: each may have an interpreter of its own, see `workers.python`.
WorkerKind = Literal["transformers", "vllm", "training"]
# What the name of a dataset in a version begins with: nothing, or one of these if it is about
# held-out prompts, of the policy or of the reference.
Side = Literal["", "eval_", "reference_"]
# The side of a dataset that was made before in the same iteration.
SideOf = Callable[[Dataset], Side]
# The rows of a dataset that is stored or planned; None where that is not known yet.
RowsOf = Callable[[Dataset], int | None]


@dataclass(frozen=True)
class Expected:
    """The size of a dataset that is not computed yet."""

    rows: int
    tokens: int | None = None  # at most so many are sampled for it; None where none are


@dataclass(frozen=True, kw_only=True)
class Role(Generic[S]):
    """What a stage is for in a run, and what is said of it to users."""

    # What its seconds are counted as the cost of; None: of neither.
    phase: Literal["training", "evaluation"] | None
    # The sides of its datasets, of which `Stage.names` is made.
    sides: tuple[Side, ...]
    side: Callable[[S, SideOf], Side]  # that of the dataset with this spec
    # The splits to whose prompts it adds columns in a prompt's history (`wind prompt`).
    history: tuple[Literal["train", "eval"], ...]
    # Whether the table of `wind versions` has a column for its seconds.
    is_timed: bool
    # The size that a plan tells before the dataset is computed, where it follows from the spec.
    expected: Callable[[S, Store, RowsOf], Expected | None]
    # Parents whose rows must be about one another, by side: for each dataset, or model, that a
    # foreign key names, the field of the spec.
    related_parents: Mapping[Side, Mapping[str, str]]
    # The most seconds that one call of a user's function may take; None: any number.
    function_seconds: Callable[[DistillConfig], float | None]


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """Everything that is known of a stage: how one dataset is computed, and what it is."""

    name: str  # the noun of the dataset, and the name of the module
    spec: type[S]
    dataset: Declaration
    dropped: Declaration | None  # of the rows that did not make it, where some may not
    shards: Callable[[S, Store], int]  # how many shards the spec has; the same on every call
    compute: Callable[[S, Store, int, Place, Progress], Shard]
    numbers: Callable[[S, pa.Table], dict[str, float]]  # the telling numbers of the finished table
    # The workers that compute it; None: it is light, and a run computes it in its own process.
    worker: Callable[[S], WorkerKind | None]
    role: Role[S] | None  # None for a study, which is no part of a run

    def names(self) -> tuple[str, ...]:
        """Return what versions, and what leads to them, call the stage's datasets."""
        return tuple(f"{side}{self.name}" for side in self.role.sides) if self.role else ()


def light(spec: Spec) -> None:
    """The worker of a stage that takes no longer than starting one."""


def one_side(spec: Spec, side_of: SideOf) -> Side:
    """The side of a stage that is run once in an iteration."""
    return ""


def as_many_as(parent: str) -> Callable[[Spec, Store, RowsOf], Expected | None]:
    """Expect a row for each row of the parent that the spec calls `parent`."""

    def expected(spec: Spec, store: Store, rows_of: RowsOf) -> Expected | None:
        handle = spec.parents()[parent]
        assert isinstance(handle, Dataset)
        rows = rows_of(handle)
        return None if rows is None else Expected(rows)

    return expected


def unforeseen(spec: Spec, store: Store, rows_of: RowsOf) -> None:
    """The expected size of a dataset whose rows do not follow from its spec."""


def no_function(config: DistillConfig) -> None:
    """The time limit of a stage that calls no function of the user."""


def stage_named(name: str) -> Stage[Any]:
    """Return the stage whose dataset is called `name`. Raises ConfigError if there is none."""
    if name not in (*STAGES, *STUDIES):
        raise ConfigError(
            f"no stage is called {name!r}: the stages are {', '.join((*STAGES, *STUDIES))}"
        )
    stage: Stage[Any] = record_of(name)
    return stage


def roles() -> dict[str, Role[Any]]:
    """Return the roles of the stages of a run, by noun, in their order."""
    return {name: role for name in STAGES if (role := stage_named(name).role) is not None}


def costs(phase: Literal["training", "evaluation"]) -> tuple[str, ...]:
    """Return the names, in a version, of the datasets whose seconds are the cost of `phase`.

    Whatever is about held-out prompts is a cost of evaluation.
    """
    side: Side = "eval_" if phase == "evaluation" else ""
    return tuple(
        f"{each}{noun}"
        for noun, role in roles().items()
        for each in role.sides
        if (each == side if len(role.sides) > 1 else role.phase == phase)
    )


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
            f"{job.stage}: {wrong[0]} is {telling[wrong[0]]}, so values are too large to be "
            "added up or not numbers: "
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
