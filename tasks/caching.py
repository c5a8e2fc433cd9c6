"""Prefect task caching that checks every hit.

A task's key covers its inputs, its own source, and the source of the modules that compute it.
Handles hash by fingerprint and config sections by value; where and how fast a run computes is not
an input of any task. A hit counts only if its dataset is still intact and the computation that made
it is on record.
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

# Field that a task's result has beside those of the handle: the key of the computation.
COMPUTATION = "computation"

S = TypeVar("S", bound=Spec)
R = TypeVar("R", bound=AnyHandle)


@dataclass
class StageKey(CachePolicy):
    """Cache policy of dataset tasks.

    The key covers the spec, the task's own source, and the source of everything that computes the
    stage.
    """

    noun: str = ""

    def compute_key(
        self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Digest the inputs and the source, except settings at their defaults.

        A later release may add settings, which must not change the key while at their defaults.
        """
        given = {name: without_defaults(value) for name, value in inputs.items()}
        return digest([self.noun, given, source_of(f"tasks.{self.noun}"), code_digest(self.noun)])


def dataset_task(function: Callable[[S], R]) -> Callable[[S], R]:
    """Turn a function of a spec into a cached task.

    The function computes the dataset that its module is named for. In a run, a hit whose dataset is
    damaged is computed again. In a plan, nothing is computed: hits are returned, and anything else
    is recorded and gets a stand-in for the dataset that is not known yet.
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
    """A function that computes one dataset, with its Prefect task.

    The task keeps what the function returned.
    """

    function: Callable[..., AnyHandle]
    cached: Task[..., dict[str, Any]]

    def call(self, spec: Spec, *, anew: bool = False) -> AnyHandle:
        """Return the cached result, or compute it.

        The cache is used if it has an intact result and `anew` is false. Either way, the run
        records an event.
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
        """Return the hit, or a stand-in for the planned dataset.

        The stand-in represents what a run would compute and is planned only once.
        """
        if hit is not None:
            return hit, "cached"
        before = set(run.planned)
        handle = self.function(spec)
        return handle, "planned" if handle.fingerprint in run.planned.keys() - before else "cached"

    def _made(
        self, run: Run[Any], spec: Spec, key: str, *, is_hit: bool
    ) -> tuple[AnyHandle, str | None, Outcome]:
        """Run the task and return its dataset, computation and outcome.

        A hit is taken from the record `key`.
        """
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
    """Retrain models of `spec` whose weights a retention policy dropped.

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
    """Return the local folder in which Prefect looks for records.

    It belongs to the store itself, or holds copies of an object store's records.
    """
    return run.store.local / "results"


def _bring_record(run: Run[Any], key: str) -> None:
    """Copy record `key` from an object store to where Prefect looks."""
    if isinstance(run.store.storage, LocalStorage):
        return
    LocalStorage(run.store.local).write(f"results/{key}", run.store.storage.read(f"results/{key}"))


def _share_record(run: Run[Any], key: str) -> None:
    """Upload Prefect's record to an object store for other machines."""
    if not isinstance(run.store.storage, LocalStorage):
        run.store.storage.write(f"results/{key}", (_results(run) / key).read_bytes())


def _key(cached: Task[..., dict[str, Any]], spec: Spec) -> str:
    """Return the cache key that Prefect computes for `spec`."""
    policy = cast(CachePolicy, cached.cache_policy)
    context = cast(Any, SimpleNamespace(task=cached))
    return str(policy.compute_key(context, inputs={"spec": spec}, flow_parameters={}))


def _look_up(run: Run[Any], key: str) -> tuple[AnyHandle | None, str | None]:
    """Return the handle cached under `key` and its computation's key.

    Either is None if it is missing. This reads plain JSON and needs no server.
    """
    try:
        record = sealed_json.read_unsealed(run.store.storage.read(f"results/{key}"))
        if Path(record["metadata"]["storage_key"]).name != key:
            # The record was moved here from another key, so its handle is not this key's result.
            return None, None
        return _parsed(sealed_json.read_unsealed(record["result"].encode()))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A damaged record is a miss: the stage runs again and writes a new one.
        return None, None


def _counts(run: Run[Any], found: AnyHandle | None, computation: str | None) -> bool:
    """Return whether the cached handle `found` is a valid hit.

    Its content must be intact, and everything that `computation` was observed to use must be
    unchanged.
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
    """Split a task's result into its handle and its computation's key.

    The key is None if the result has none.
    """
    key = result.get(COMPUTATION)
    handle = HANDLE.validate_python(
        {name: value for name, value in result.items() if name != COMPUTATION}
    )
    return handle, key if isinstance(key, str) else None


def _noun(function: Callable[..., Any]) -> str:
    """Return the dataset that `function` computes: the name of its module."""
    return function.__module__.rpartition(".")[2]
