"""The plan of a run.

A plan walks through the flow itself without computing anything.
"""

from collections.abc import Mapping
from typing import Any

from flows.distill import distill
from flows.estimates import Estimator, Hardware, fields, our_environment, same_hardware, took
from tasks.run import Event, Run, open_run
from wind.audit.recomputation import ComputedVersion, newest, reasons
from wind.config.recipe import DistillConfig
from wind.errors import GateError
from wind.machine.terminal import complain
from wind.stages import Expected, stage_named
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.stamps import refused
from wind.store.versions import Version


def planned(
    config: DistillConfig,
    base: Version | None = None,
    hardware: Hardware | None = None,
    *,
    compare: bool = False,
) -> list[dict[str, Any]]:
    """Return the plan of a run, one entry per stage and iteration.

    An entry says whether the stage is cached or would run, why, and the size of its dataset. The
    outcome is "cached" or "run"; the size is rows, tokens, megabytes, and seconds. For a stage that
    would run, it is estimated from the newest dataset of the same noun that this hardware computed,
    scaled by rows. Where there is none, it is null without `hardware`, and with it estimated from
    the prompts and the shape of the policy, as are memory, engine starts, and whether it fits.
    With `compare`, what is cached has its estimate, too, beside what it took.
    """
    with open_run(config, planning=True, quiet=True) as here:
        try:
            distill.fn(here.config, base)
        except GateError as error:
            complain(f"the run ends there: {error}")
        if (warning := here.warning()) is not None:
            complain(warning)
        iterations = {event.iteration for event in here.events}
        before = {iteration: newest(here.store, config.run, iteration) for iteration in iterations}
        steps = [
            _step(here, event) | {"why": _why(here, event, before[event.iteration])}
            for event in here.events
        ]
        if hardware is not None:
            _estimate(here, steps, hardware, compare=compare)
        return steps


def _estimate(
    here: Run[DistillConfig], steps: list[dict[str, Any]], hardware: Hardware, *, compare: bool
) -> None:
    """Add estimates to the steps that would run, and to all others with `compare`.

    Seconds that were measured here are better than any estimate, unless the plan is for other
    hardware.
    """
    estimator = Estimator(here, here.events, hardware.gpu)
    for event, step in zip(here.events, steps, strict=True):
        if event.outcome == "planned":
            if (estimate := estimator.of(event)) is None:
                continue
            wanted = fields(estimate)
            is_measured = hardware.gpu is None and step["seconds"] is not None
            step |= wanted | ({"seconds": step["seconds"]} if is_measured else {})
            step["basis"] = "measured" if is_measured else "estimated"
        elif compare and isinstance(event.handle, Dataset):
            estimate = estimator.of(event)
            is_stored = event.handle.fingerprint not in here.planned
            if is_stored and estimate is not None:
                step["planned"] = fields(estimate)
                step["took"] = took(here.store.manifest(event.handle))
    for line in (
        estimator.basis() if any("basis" in step or "took" in step for step in steps) else ()
    ):
        complain(line)


def _step(here: Run[DistillConfig], event: Event) -> dict[str, Any]:
    of = {"iteration": event.iteration, "stage": event.dataset, "dataset": event.name}
    step: dict[str, Any] = {**of, "outcome": "cached", "tokens": None}
    if (
        event.outcome == "cached"
        and isinstance(event.handle, Dataset)
        and event.handle.fingerprint not in here.planned
    ):
        manifest = here.store.manifest(event.handle)
        return step | {
            "rows": manifest.rows,
            "megabytes": round(manifest.bytes() / 1e6, 2),
            "seconds": 0.0,
        }
    expected = _expected(here, event)
    rows = None if expected is None else expected.rows
    if event.outcome == "cached":  # computed by then: the same stage is earlier in this plan
        return step | {"rows": rows, "megabytes": 0.0, "seconds": 0.0}
    like = _newest(here, event)
    scale = rows / like.rows if rows and like and like.rows else None
    return step | {
        "outcome": "run",
        "rows": rows,
        "tokens": None if expected is None else expected.tokens,
        "megabytes": round(like.bytes() * scale / 1e6, 2) if like and scale else None,
        "seconds": round(like.provenance.get("seconds", 0.0) * scale, 1)
        if like and scale
        else None,
    }


def _why(here: Run[DistillConfig], event: Event, before: ComputedVersion | None) -> list[str]:
    """Return why a stage would run.

    The reasons are what changed since the run's version `before`.
    """
    if event.outcome != "planned" or event.handle is None:
        return []
    if before is None or event.name not in before.computations:
        return ["never computed"]
    computed = before.computations[event.name]
    used = computed.observed.changed(packages=here.config.cache.packages == "key")
    if why := [*reasons(computed, here.planned[event.handle.fingerprint]), *used]:
        return why
    if refused(here.store.address):
        return ["what there is was not computed by us"]
    is_whole = here.store.is_whole(before.datasets[event.name])
    return [
        "the cache does not know it"
        if is_whole
        else "its dataset, or what was made with it, is missing or damaged"
    ]


def _expected(here: Run[DistillConfig], event: Event) -> Expected | None:
    """Return the size of a planned dataset, if its spec determines it.

    Returns None if it does not, which is always so unless the prompts are in the cache.
    """

    def expected(handle: AnyHandle) -> Expected | None:
        job = here.planned.get(handle.fingerprint)
        if job is None:
            return None
        stage = stage_named(job.stage)
        if stage.role is None:
            return None
        return stage.role.expected(stage.spec.model_validate(job.spec), here.store, rows_of)

    def rows_of(handle: Dataset) -> int | None:
        if handle.fingerprint not in here.planned:
            return handle.rows
        size = expected(handle)
        return None if size is None else size.rows

    return None if event.handle is None else expected(event.handle)


def _newest(here: Run[DistillConfig], event: Event) -> Any:
    """Return the newest manifest of a stage on hardware and a policy as large as the event's."""
    manifests = [here.store.manifest(handle) for handle in here.store.handles(event.dataset)]
    timed = [manifest for manifest in manifests if "started" in manifest.provenance]
    ours = our_environment(here) if timed else {}
    size = _policy_size(event.spec.parents())
    return max(
        (
            manifest
            for manifest in timed
            if _policy_size(manifest.parents) == size and same_hardware(here, manifest, ours)
        ),
        key=lambda manifest: manifest.provenance["started"],
        default=None,
    )


def _policy_size(parents: Mapping[str, AnyHandle]) -> int | None:
    policy = parents.get("policy")
    return policy.parameters if isinstance(policy, Model) else None
