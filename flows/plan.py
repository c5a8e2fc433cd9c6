"""What a run would do: the flow itself, walked through without computing anything."""

from collections.abc import Sequence
from typing import Any

from flows.distill import distill
from tasks.running import Event, Running, start
from wind.audit.recomputation import ComputedVersion, newest, reasons
from wind.config.recipe import DistillConfig
from wind.config.sampling import SamplingConfig
from wind.machine.terminal import complain
from wind.prompt_parts import sampled_prompts
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.stamps import refused
from wind.store.versions import Version


def planned(config: DistillConfig, base: Version | None = None) -> list[dict[str, Any]]:
    """One entry per stage and iteration: outcome "cached" or "run", and why; rows, tokens (at
    most), megabytes, seconds.

    What would run is estimated from the newest dataset of the same noun in the store, scaled by
    rows; null where there is none.
    """
    with start(config, planning=True, quiet=True) as here:
        distill.fn(here.config, base)
        if (warning := here.warning()) is not None:
            complain(warning)
        iterations = {event.iteration for event in here.events}
        before = {iteration: newest(here.store, config.run, iteration) for iteration in iterations}
        return [
            _step(here, event) | {"why": _why(here, event, before[event.iteration])}
            for event in here.events
        ]


def _step(here: Running[DistillConfig], event: Event) -> dict[str, Any]:
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
    rows = _rows(here, event)
    if event.outcome == "cached":  # computed by then: the same stage stands earlier in this plan
        return step | {"rows": rows, "megabytes": 0.0, "seconds": 0.0}
    sampling = getattr(event.spec, "sampling", None)
    like = _newest(here.store, event.dataset)
    scale = rows / like.rows if rows and like and like.rows else None
    return step | {
        "outcome": "run",
        "rows": rows,
        "tokens": rows * sampling.max_new_tokens
        if rows and isinstance(sampling, SamplingConfig)
        else None,
        "megabytes": round(like.bytes() * scale / 1e6, 2) if like and scale else None,
        "seconds": round(like.provenance.get("seconds", 0.0) * scale, 1)
        if like and scale
        else None,
    }


def _why(here: Running[DistillConfig], event: Event, before: ComputedVersion | None) -> list[str]:
    """What is other than in the run's version `before`, for a stage that would run; nothing for one
    that would not.
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


def _rows(here: Running[DistillConfig], event: Event) -> int | None:
    """The rows that a stage will have, where that follows from the prompts; the prompts must be in
    the cache.
    """
    prompts = next(
        (
            past.handle
            for past in here.events
            if past.dataset == "prompts" and past.outcome == "cached"
        ),
        None,
    )
    if not isinstance(prompts, Dataset):
        return None
    frame = here.store.frame(prompts, ["prompt_id", "split"])
    sampled = {
        split: len(
            sampled_prompts(
                frame, split, here.config.seed, event.iteration or 1, here.config.prompts.parts
            )
        )
        for split in ("train", "eval")
    }
    train = sampled["train"] * here.config.sampling.samples_per_prompt
    held_out = sampled["eval"] * here.config.evaluation.samples_per_prompt
    if event.dataset in ("win_rates", "selections"):
        return train
    if event.dataset == "rollouts":
        return sampled["train"] * here.config.responses_per_prompt()
    if event.dataset == "evaluation":
        return held_out
    if event.dataset in ("generations", "rewards", "logps"):
        before = [
            past
            for past in here.events
            if past.dataset == event.dataset and past.iteration == event.iteration
        ]
        is_stored = here.config.objective.steps_per_refresh is None
        return train if is_stored and before and before[0] is event else held_out
    return None


def _newest(store: Store, noun: str) -> Any:
    manifests = [store.manifest(handle) for handle in store.handles(noun)]
    timed: Sequence[Any] = [manifest for manifest in manifests if "started" in manifest.provenance]
    return max(timed, key=lambda manifest: manifest.provenance["started"], default=None)
