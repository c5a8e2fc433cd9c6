"""Prefect's cache, made true.

A task's key is its inputs, its own source, and the source of the modules that compute it. Handles
hash by fingerprint and config sections by value; where and how fast a run computes is no task's
input. A hit counts only if its dataset is still whole and the computation that made it is recorded.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from prefect import Task
from prefect.cache_policies import CachePolicy

from tasks.run import Event, Outcome, Run, current_run
from wind.code.digests import code_digest, source_of
from wind.config.base import without_defaults
from wind.errors import DatasetError
from wind.fingerprints import digest
from wind.stages import Spec
from wind.store import sealed_json
from wind.store.computations import is_recorded, used_by
from wind.store.handles import HANDLE, AnyHandle, Model, label
from wind.store.storage import LocalStorage

# beside the fields of a handle in a task's result: the key of what made it
COMPUTATION = "computation"

S = TypeVar("S", bound=Spec)
R = TypeVar("R", bound=AnyHandle)


@dataclass
class StageKey(CachePolicy):
    """A key of the spec, the task's own source, and the source of all that computes the stage."""

    noun: str = ""

    def compute_key(
        self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Digest everything but settings at their defaults, which a later release may add."""
        given = {name: without_defaults(value) for name, value in inputs.items()}
        return digest([self.noun, given, source_of(f"tasks.{self.noun}"), code_digest(self.noun)])


def dataset_task(function: Callable[[S], R]) -> Callable[[S], R]:
    """Make a function of a spec, which computes the dataset its module is named for, a cached task.

    In a run, a hit whose dataset is damaged is computed again. In a plan nothing is computed: hits
    are returned, and anything else is recorded and stands for a dataset that is not known yet.
    """

    @functools.wraps(function)
    def compute(spec: S) -> dict[str, Any]:
        made = function(spec)
        return {**made.model_dump(mode="json"), COMPUTATION: current_run().keys.get(made)}

    cached: Task[..., dict[str, Any]] = Task(
        compute,
        name=function.__name__,
        description=inspect.getdoc(function),
        cache_policy=StageKey(noun=_noun(function)),
        persist_result=True,
        result_serializer="json",
    )
    stage = _CachedStage(function, cached)

    @functools.wraps(function)
    def call(spec: S) -> R:
        return cast(R, stage.call(spec))

    return call


@dataclass(frozen=True)
class _CachedStage:
    """A function that computes one dataset, and the Prefect task that keeps what it returned."""

    function: Callable[..., AnyHandle]
    cached: Task[..., dict[str, Any]]

    def call(self, spec: Spec, *, anew: bool = False) -> AnyHandle:
        """Return the result from the cache if it has an intact one and `anew` is false.

        Otherwise compute it. Either way the run records an event.
        """
        run, noun = current_run(), _noun(self.function)
        key = _key(self.cached, spec)
        found, computation = _look_up(run, key)
        is_wanted = not anew and not run.is_refreshed(noun)
        hit = found if is_wanted and _counts(run, found, computation) else None
        if hit is not None:
            again = functools.partial(self.call, spec, anew=True)
            run.trainings |= dict.fromkeys(run.store.dropped_models(hit), again)
        else:
            _restore_weights(run, spec)
        outcome: Outcome
        if run.planning:
            handle, outcome = self._planned(run, spec, hit)
        else:
            handle, computation, outcome = self._made(run, spec, key, is_hit=hit is not None)
        run.note(
            Event(
                task=self.function.__name__,
                dataset=noun,
                name=run.name_of(noun, spec),
                iteration=run.iteration or None,
                outcome=outcome,
                handle=handle,
                key=computation,
                spec=spec,
            )
        )
        return handle

    def _planned(
        self, run: Run[Any], spec: Spec, hit: AnyHandle | None
    ) -> tuple[AnyHandle, Outcome]:
        """Return the hit, or a stand-in for what a run would compute, planned once."""
        if hit is not None:
            return hit, "cached"
        before = set(run.planned)
        handle = self.function(spec)
        return handle, "planned" if handle.fingerprint in run.planned.keys() - before else "cached"

    def _made(
        self, run: Run[Any], spec: Spec, key: str, *, is_hit: bool
    ) -> tuple[AnyHandle, str | None, Outcome]:
        """Run the task, which takes a hit from the record `key`; also return its computation."""
        name = self.function.__name__
        configured = self.cached.with_options(
            result_storage=_results(run),
            refresh_cache=not is_hit,
            task_run_name=f"{name} {run.iteration}" if run.iteration else name,
        )
        if is_hit:
            _bring_record(run, key)
        handle, computation = _parsed(configured(spec))
        if not is_hit:
            _share_record(run, key)
        outcome: Outcome = "cached" if is_hit or handle.fingerprint in run.taken else "computed"
        run.taken.discard(handle.fingerprint)
        return handle, computation, outcome


def _restore_weights(run: Run[Any], spec: Spec) -> None:
    """Retrain the models of `spec` whose weights a retention policy dropped.

    Raises DatasetError if this run did not train one of them, or if training did not give the same
    weights again.
    """
    for _, model in spec:
        if not isinstance(model, Model) or not run.store.is_dropped(model):
            continue
        if model in run.trainings:
            run.trainings.pop(model)()
        elif not run.planning:
            raise DatasetError(
                f"a retention policy dropped the weights of {label(model)}: `wind rerun RUN "
                "--from training` first"
            )
        if not run.planning and not run.store.is_whole(model):
            raise DatasetError(
                f"a retention policy dropped {label(model)}, and training gave other weights: "
                "start a new run"
            )


def _results(run: Run[Any]) -> Path:
    """The folder of this machine in which Prefect looks for records: that of the store, or copies
    of an object store's.
    """
    return run.store.local / "results"


def _bring_record(run: Run[Any], key: str) -> None:
    """Let Prefect find the record `key` of an object store."""
    if isinstance(run.store.storage, LocalStorage):
        return
    LocalStorage(run.store.local).write(f"results/{key}", run.store.storage.read(f"results/{key}"))


def _share_record(run: Run[Any], key: str) -> None:
    """Put the record that Prefect wrote into an object store, for other machines."""
    if not isinstance(run.store.storage, LocalStorage):
        run.store.storage.write(f"results/{key}", (_results(run) / key).read_bytes())


def _key(cached: Task[..., dict[str, Any]], spec: Spec) -> str:
    """The key that Prefect computes for `spec`."""
    policy = cast(CachePolicy, cached.cache_policy)
    context = cast(Any, SimpleNamespace(task=cached))
    return str(policy.compute_key(context, inputs={"spec": spec}, flow_parameters={}))


def _look_up(run: Run[Any], key: str) -> tuple[AnyHandle | None, str | None]:
    """The handle that the cache holds under `key`, if any, and the computation's key. Reads plain
    JSON, and needs no server.
    """
    try:
        record = sealed_json.read_unsealed(run.store.storage.read(f"results/{key}"))
        if Path(record["metadata"]["storage_key"]).name != key:
            # another key's: it was moved, and its handle is no result of this one
            return None, None
        return _parsed(sealed_json.read_unsealed(record["result"].encode()))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None  # a damaged record is no hit: the stage runs again and writes a new one


def _counts(run: Run[Any], found: AnyHandle | None, computation: str | None) -> bool:
    """Whether what the cache has `found` is whole, and all that the `computation` was observed to
    use is as it was.
    """
    if (
        found is None
        or computation is None
        or not run.store.pin_if_whole(found)
        or not is_recorded(run.store, found, computation)
    ):
        return False
    used = used_by(run.store, found, computation)
    if used.changed(packages=run.config.cache.packages == "key"):
        return False
    run.other_packages |= used.other_packages()
    return True


def _parsed(result: dict[str, Any]) -> tuple[AnyHandle, str | None]:
    """The handle of a task's result, and the key of its computation where it has one."""
    key = result.get(COMPUTATION)
    handle = HANDLE.validate_python(
        {name: value for name, value in result.items() if name != COMPUTATION}
    )
    return handle, key if isinstance(key, str) else None


def _noun(function: Callable[..., Any]) -> str:
    """The dataset that `function` computes: the name of its module."""
    return function.__module__.rpartition(".")[2]
