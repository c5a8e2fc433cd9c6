"""The record of a stage, and the code that runs one.

A run of a stage takes a spec, computes shards of rows, and publishes one dataset. Every stage
module has one `STAGE`, which holds everything that is known about the stage. A stage runs the same
way from a Prefect task, in a worker process, or by hand with `python -m wind.stages FILE`, where
the file is a `Job`, or the manifest of a dataset, which keeps its job under `computed_by`.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from wind.code.digests import refuse_edited
from wind.code.observed import Observed, noting
from wind.config.endpoints import Connection
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

# Shards that a process may begin before it has finished one. A shard ends with its longest response
# and takes several times as long as its average one.
AHEAD: Final = 4


class Progress(Protocol):
    """A callback that hears how much of a shard is done.

    It is called now and then. The unit is the stage's own.
    """

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` is finished."""


class Spec(Record):
    """Everything that determines a stage's content, and nothing else.

    Its fields are handles, config sections, and seeds.
    """

    @classmethod
    def of(cls, config: Record, inputs: Mapping[str, Any], **given: Any) -> Self:
        """Build a spec by looking up each field by its name.

        A field comes from `given`, else from `inputs`, else from the sections of `config`. Inputs
        and sections that the spec does not declare are ignored, so that one mapping of an
        iteration's inputs serves all of its stages. Raises ValidationError for a field that is
        found nowhere.
        """
        sections = dict(config)
        found = {name: sections[name] for name in cls.model_fields if name in sections}
        found |= {name: inputs[name] for name in cls.model_fields if name in inputs}
        return cls(**(found | given))

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs, by field name."""
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), AnyHandle)
        }


S = TypeVar("S", bound=Spec)


class Place(Record):
    """Where and how a stage runs, which never changes its content."""

    root: str
    device: str = "cpu"  # cpu | cuda
    pin_set: str | None = None  # that of the run it works for (`wind.store.pins`)
    keep_state: bool = False  # whether training leaves its last checkpoint behind
    # whether to recompute what was computed with other versions of packages
    same_packages: bool = False
    # the longest that one call of a user's function may take; None: no limit
    function_seconds: float | None = None
    # how to reach what rewards by HTTP, by its identity
    connections: dict[str, Connection] = {}
    # the shards that this process computes next, in order, unless it fails
    ahead: tuple[int, ...] = ()


class Job(Record):
    """A stage, its spec, and its place, sent to workers as JSON."""

    stage: str
    spec: dict[str, Any]
    place: Place
    code: str = ""  # digest of the modules that compute the stage
    # digest of each of them and of the task's source, to tell later which one changed
    modules: dict[str, str] = {}

    def key(self) -> str:
        """Return the name of the unfinished shards and of the computation's record.

        It is the same for the same spec and code on any machine.
        """
        return key_of(self.stage, self.spec, self.code)

    def ahead_of(self, shards: Sequence[int]) -> Self:
        """Return the job for a process that computes `shards` next."""
        return self.model_copy(
            update={"place": self.place.model_copy(update={"ahead": tuple(shards)})}
        )


# Looks for a dataset to take instead of computing it, once its lock is held.
Find = Callable[[Job], Dataset | None]


@dataclass(frozen=True)
class Shard:
    """The rows of one shard, cast to the declared schema when written."""

    table: pa.Table
    schema: pa.Schema | None = None  # given if further columns follow the declared ones
    # rows that were left out, each with its reason: the dataset `<name>.dropped`
    dropped: pa.Table | None = None
    # what else was published: the model from training
    outputs: Mapping[str, AnyHandle] = field(default_factory=dict)
    # numbers that the finished table no longer shows, summed over shards
    numbers: Mapping[str, float] = field(default_factory=dict)
    # what computing it took, summed over shards, such as requests: not the same every time
    counts: Mapping[str, float] = field(default_factory=dict)


# Kinds of workers. Each may have its own interpreter, set by `workers.python`.
WorkerKind = Literal["transformers", "vllm", "training", "benchmarks"]
# The prefix of a dataset's name in a version: empty, or, if the dataset is about held-out prompts,
# the one of the policy or of the reference.
Side = Literal["", "eval_", "reference_"]
# Gives the side of a dataset that was made earlier in the same iteration.
SideOf = Callable[[Dataset], Side]
# Gives the number of rows of a stored or planned dataset, or None if it is not known yet.
RowsOf = Callable[[Dataset], int | None]


@dataclass(frozen=True)
class Expected:
    """The expected size of a dataset that is not computed yet."""

    rows: int
    tokens: int | None = None  # the most that are sampled for it; None if none are


@dataclass(frozen=True, kw_only=True)
class Role(Generic[S]):
    """A stage's part in a run, and what users are told."""

    # The phase whose cost its seconds count toward; None: neither.
    phase: Literal["training", "evaluation"] | None
    # The sides of its datasets, from which `Stage.names` is built.
    sides: tuple[Side, ...]
    side: Callable[[S, SideOf], Side]  # the side of the dataset with this spec
    # The splits whose prompts get columns from it in their history (`wind prompt`).
    history: tuple[Literal["train", "eval"], ...]
    # Whether the table of `wind versions` has a column for its seconds.
    is_timed: bool
    # Whether its drift since the previous iteration is judged, by `data_checks.drift`.
    has_drift: bool
    # The size that a plan shows before the dataset is computed, if it follows from the spec.
    expected: Callable[[S, Store, RowsOf], Expected | None]
    # Parents whose rows must be about one another, by side. Each mapping goes from the dataset or
    # model that a foreign key names to the field of the spec.
    related_parents: Mapping[Side, Mapping[str, str]]
    # The most seconds that one call of a user's function may take; None: no limit.
    function_seconds: Callable[[DistillConfig], float | None]


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """Everything that is known about a stage and its dataset.

    That is how the dataset is computed, and what it is.
    """

    name: str  # the noun of the dataset, and the name of the module
    spec: type[S]
    dataset: Declaration
    dropped: Declaration | None  # of the rows left out, if some may be
    shards: Callable[[S, Store], int]  # number of shards of the spec; the same on every call
    compute: Callable[[S, Store, int, Place, Progress], Shard]
    numbers: Callable[[S, pa.Table], dict[str, float]]  # the numbers that sum up the finished table
    # The kind of worker that computes it; None: it is light, and the run's own process does.
    worker: Callable[[S], WorkerKind | None]
    role: Role[S] | None  # None for a study, which is not part of a run

    def names(self) -> tuple[str, ...]:
        """Return the names of the stage's datasets in versions.

        Everything that leads up to a version uses these names, too.
        """
        return tuple(f"{side}{self.name}" for side in self.role.sides) if self.role else ()


def light(spec: Spec) -> None:
    """Return no worker: the stage takes no longer than starting one."""


def one_side(spec: Spec, side_of: SideOf) -> Side:
    """Return the side of a stage that runs once per iteration."""
    return ""


def as_many_as(parent: str) -> Callable[[Spec, Store, RowsOf], Expected | None]:
    """Expect one row for each row of a parent.

    The spec calls that parent `parent`.
    """

    def expected(spec: Spec, store: Store, rows_of: RowsOf) -> Expected | None:
        handle = spec.parents()[parent]
        assert isinstance(handle, Dataset)
        rows = rows_of(handle)
        return None if rows is None else Expected(rows)

    return expected


def unforeseen(spec: Spec, store: Store, rows_of: RowsOf) -> None:
    """Return no expected size: the rows do not follow from the spec."""


def no_function(config: DistillConfig) -> None:
    """Return no time limit: the stage calls no function of the user."""


def stage_named(name: str) -> Stage[Any]:
    """Return the stage whose dataset is called `name`.

    Raises ConfigError if there is none.
    """
    if name not in (*STAGES, *STUDIES):
        raise ConfigError(
            f"no stage is called {name!r}: the stages are {', '.join((*STAGES, *STUDIES))}"
        )
    stage: Stage[Any] = record_of(name)
    return stage


def roles() -> dict[str, Role[Any]]:
    """Return the roles of a run's stages by noun, in their order."""
    return {name: role for name in STAGES if (role := stage_named(name).role) is not None}


def costs(phase: Literal["training", "evaluation"]) -> tuple[str, ...]:
    """Return the names of datasets whose seconds are the cost of `phase`.

    These are their names in a version. Anything about held-out prompts is a cost of evaluation.
    """
    side: Side = "eval_" if phase == "evaluation" else ""
    return tuple(
        f"{each}{noun}"
        for noun, role in roles().items()
        for each in role.sides
        if (each == side if len(role.sides) > 1 else role.phase == phase)
    )


def parse(job: Job) -> tuple[Stage[Any], Any, Store]:
    """Return the stage of `job`, its validated spec, and its store."""
    stage = stage_named(job.stage)
    try:
        return stage, stage.spec.model_validate(job.spec), Store(job.place.root, job.place.pin_set)
    except ValidationError as error:
        raise ConfigError(f"the spec of {job.stage} is wrong: {first_line(error)}") from error


def missing_shards(job: Job, partial: Partial) -> list[int]:
    """Return the shards of `job` that are not finished yet, in order.

    A shard also counts as unfinished if something that its computation used has changed.
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
    """Compute shard `index` of `job` and commit it.

    The caller holds the lock on the unfinished dataset.
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
    beside["counts"] = dict(shard.counts)
    partial.write(index, shard.table, shard.schema, beside=beside)


def publish(
    job: Job, partial: Partial, started: float, peak_memory_bytes: int | None = None
) -> Dataset:
    """Publish the dataset of `job`, all of whose shards are finished.

    `started` is the Unix time when its computation began.
    """
    stage, spec, store = parse(job)
    shards = stage.shards(spec, store)
    outputs: dict[str, AnyHandle] = {}
    numbers: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    environments = []
    observed = Observed()
    for index in range(shards):
        beside = partial.beside(index)
        outputs |= {
            name: HANDLE.validate_python(fields) for name, fields in beside["outputs"].items()
        }
        numbers.update(beside["numbers"])
        counts.update(beside.get("counts", {}))
        observed = observed.joined(_observed(beside))
        # a shard of an older release has none
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
        # a cache hit does not depend on these, though the rows may
        facts["unobserved"] = list(observed.unobserved)
    if counts:
        facts["counts"] = dict(counts)
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
    """Return what the computation of a shard used.

    Nothing is known about a shard of an older release.
    """
    return Observed.model_validate(beside.get("observed", {}))


def _is_changed(observed: Observed, job: Job) -> bool:
    return bool(observed.changed(packages=job.place.same_packages))


def published(job: Job) -> Dataset | None:
    """Return what another process with the same job has published.

    It must be whole and recorded, and nothing that it used may have changed; otherwise returns
    None. Call this once the lock on the unfinished dataset is held: that process may have held it
    until now.
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
    """Compute what is missing of `job` in this process, and publish it.

    If `find` returns a dataset, that is taken instead.
    """
    started = time.time()
    reset_peak_memory()
    stage, _, store = parse(job)
    with store.partial(stage.name, job.key()) as partial:
        if find is not None and (found := find(job)) is not None:
            return found
        missing = missing_shards(job, partial)
        for place, index in enumerate(missing, 1):
            compute_shard(job.ahead_of(missing[place : place + AHEAD]), index, progress)
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
