"""Estimates of what a plan's stages take, and what the finished ones took."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tasks.devices import device_of
from tasks.run import Event, Run
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError
from wind.machine import devices
from wind.machine.terminal import complain
from wind.models.pretrained import read_json
from wind.planning.hardware import Gpu, gpu_named, memory_bytes
from wind.planning.measuring import probed
from wind.planning.rates import of_cpu, of_gpu
from wind.planning.shapes import Shape
from wind.planning.work import (
    FUNCTION_ROW,
    Device,
    Estimate,
    Iteration,
    Prompts,
    Responses,
    prompts_of,
)
from wind.prompt_parts import sampled_prompts
from wind.prompts import compute as compute_prompts
from wind.stages import Place
from wind.store.handles import Dataset, Manifest, Model
from wind.store.provenance import environment
from wind.store.versions import Versions

if TYPE_CHECKING:
    import polars as pl

# what a run takes beside its stages, by what was seen: Prefect, and the checks of a dataset
SERVER_SECONDS: Final = 10.0
CHECKS_SECONDS: Final = 0.5


# rewards that a model of the recipe gives, whose shape says how long they take
BY_MODEL: Final = ("classifier", "pairwise")


@dataclass(frozen=True)
class Hardware:
    """The hardware that a plan is for: `gpus` of the GPU called `gpu`, or this machine."""

    gpu: str | None = None
    gpus: int | None = None


def on_hardware(config: DistillConfig, hardware: Hardware) -> DistillConfig:
    """Return `config` with one worker and one rank for each of the given GPUs."""
    if hardware.gpu is None:
        return config
    gpu_named(hardware.gpu)
    count = hardware.gpus or config.workers.processes
    training = config.training
    if training.batch_prompts % (training.micro_prompts * count):
        raise ConfigError(
            f"training.batch_prompts is {training.batch_prompts}, no multiple of micro_prompts "
            f"{training.micro_prompts} on {count} GPUs: set training.batch_prompts"
        )
    workers = config.workers.model_copy(update={"device": "cuda", "processes": count})
    training = training.model_copy(update={"ranks": count})
    return config.model_copy(update={"workers": workers, "training": training})


class Estimator:
    """Estimates the datasets of one plan by the names that they have in versions."""

    def __init__(self, here: Run[DistillConfig], events: Sequence[Event], gpu: str | None) -> None:
        self._here, self._events = here, events
        self._gpu = gpu_named(gpu) if gpu else _own_gpu(here.config)
        self._found: dict[tuple[int, bool], dict[str, Estimate]] = {}
        started = [event.iteration for event in events if event.name == "generations"]
        self._first = min((each for each in started if each), default=1)

    def of(self, event: Event) -> Estimate | None:
        """Return the estimate of one dataset, None for a kind that is not estimated."""
        if event.name == "prompts":
            frame, seconds = self._prompts
            size = float(frame["tokens"].sum()) * 8 / 1e6
            seconds += self._device.rates.start
            return Estimate(rows=len(frame), seconds=seconds, megabytes=size)
        key = event.iteration or self._first, (event.iteration or self._first) == self._first
        if key not in self._found:
            train, held_out = (self._sampled(split, key[0]) for split in ("train", "eval"))
            self._found[key] = self._iteration.estimates(train, held_out, first=key[1])
        return self._found[key].get(event.name)

    def basis(self) -> list[str]:
        """Say what the estimates rest on, a line each."""
        return [
            f"lengths: {self._responses.basis}",
            f"seconds: {self._device.rates.basis}, or what was measured on this hardware where the "
            "store has it",
            *([_assumed(self._here.config.reward.kind)] if self._reward is None else []),
        ]

    @cached_property
    def _prompts(self) -> "tuple[pl.DataFrame, float]":
        """The prompt_id, split and tokens of every prompt, and the seconds it took to make them."""
        import polars as pl

        event = next(event for event in self._events if event.name == "prompts")
        store = self._here.store
        columns = ["prompt_id", "split", "prompt_token_ids"]
        seconds = 0.0
        assert isinstance(event.handle, Dataset)
        if event.handle.fingerprint in self._here.planned:
            began = time.process_time()
            place = Place(root=store.address)
            shard = compute_prompts(event.spec, store, 0, place, lambda done, total: None)  # type: ignore[arg-type]
            frame, seconds = pl.DataFrame(shard.table.select(columns)), time.process_time() - began
        else:
            frame = store.frame(event.handle, columns)
        tokens = pl.col("prompt_token_ids").list.len().alias("tokens")
        return frame.select("prompt_id", "split", tokens), seconds

    def _sampled(self, split: str, iteration: int) -> Prompts:
        config = self._here.config
        frame = sampled_prompts(
            self._prompts[0], split, config.seed, iteration, config.prompts.parts
        )
        return prompts_of(frame["tokens"].to_list())

    @cached_property
    def _policy(self) -> tuple[Mapping[str, Any], Shape]:
        """The config.json of the policy, and its shape."""
        event = next(event for event in self._events if event.name == "prompts")
        model: Model = event.spec.tokenizer  # type: ignore[attr-defined]
        return _shape(self._here, model)

    @cached_property
    def _reward(self) -> Shape | None:
        rewards = (getattr(event.spec, "reward", None) for event in self._events)
        models = (getattr(reward, "model", None) for reward in rewards)
        found = next((model for model in models if isinstance(model, Model)), None)
        return None if found is None else _shape(self._here, found)[1]

    @cached_property
    def _responses(self) -> Responses:
        """The lengths of the run's newest generations, or an assumption."""
        config, store = self._here.config, self._here.store
        most = config.sampling.max_new_tokens
        versions = list(Versions(store, config.run))
        handles = [version.content.datasets.get("generations") for version in versions]
        for handle in reversed(handles):
            if handle is not None and store.is_whole(handle):
                frame = store.frame(handle, ["response_token_ids"])
                lengths = frame["response_token_ids"].list.len().clip(upper_bound=most)
                mean, longest = float(lengths.mean()), float(lengths.max())  # type: ignore[arg-type]
                basis = f"responses have {mean:.1f} tokens, as the run's newest generations"
                return Responses(mean=mean, longest=longest, basis=basis)
        return Responses.assumed(most)

    @cached_property
    def _device(self) -> Device:
        model, shape = self._policy
        config, train = self._here.config, self._sampled("train", self._first)
        if self._gpu is not None:
            return device_with(self._gpu, config, shape, train, self._responses)
        measured, basis = probed(config, model, shape, train, self._responses)
        rates = of_cpu(measured, shape).model_copy(update={"basis": basis})
        return Device(kind="cpu", memory=memory_bytes(), rates=rates)

    @cached_property
    def _iteration(self) -> Iteration:
        shape = self._policy[1]
        config = self._here.config
        return Iteration(config, shape, self._reward, self._device, self._responses)


def device_with(
    gpu: Gpu, config: DistillConfig, shape: Shape, prompts: Prompts, responses: Responses
) -> Device:
    """Return the device of workers that have one `gpu` each."""
    context = prompts.tokens + responses.mean
    rates = of_gpu(gpu, config, shape, context)
    return Device(kind="cuda", memory=gpu.memory, rates=rates)


def imagined(
    config: DistillConfig, hardware: Hardware, model: Path, prompts: Prompts
) -> list[dict[str, Any]]:
    """Return the steps of a plan by arithmetic alone, from the policy's config.json.

    Nothing is fetched or stored. `prompts` are all that the source has. A reward model is taken to
    be as large as the policy. Raises ConfigError if the file cannot be used.
    """
    for line in (
        Responses.assumed(config.sampling.max_new_tokens).basis,
        f"{prompts.count} prompts of {prompts.tokens:g} tokens, as given",
        "rewards: the reward model is assumed to be as large as the policy"
        if config.reward.kind in BY_MODEL
        else _assumed(config.reward.kind),
    ):
        complain(line)
    content = read_json(model)
    if not isinstance(content, dict):
        raise ConfigError(f"{model} is no config.json of a model")
    shape, gpu = Shape.of(content), gpu_named(hardware.gpu or "")
    responses = Responses.assumed(config.sampling.max_new_tokens)
    eval_share, parts = config.prompts.eval_fraction, config.prompts.parts
    train = prompts.model_copy(update={"count": round(prompts.count * (1 - eval_share) / parts)})
    held_out = prompts.model_copy(update={"count": round(prompts.count * eval_share)})
    device = device_with(gpu, config, shape, train, responses)
    reward = shape if config.reward.kind in BY_MODEL else None
    iteration = Iteration(config, shape, reward, device, responses)
    return [
        {
            "iteration": number,
            "stage": name.removeprefix("eval_").removeprefix("reference_"),
            "dataset": name,
            "outcome": "run",
            "why": ["never computed"],
            **fields(estimate),
        }
        for number in range(1, config.iterations + 1)
        for name, estimate in iteration.estimates(train, held_out, first=number == 1).items()
    ]


def fields(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as the fields of a plan's step."""
    memory = estimate.memory
    return {
        "rows": estimate.rows,
        "tokens": None if estimate.tokens is None else round(estimate.tokens),
        "megabytes": round(estimate.megabytes, 2),
        "megabytes_meanwhile": round(estimate.scratch, 2),
        "seconds": round(estimate.seconds, 1),
        "gigabytes_of_memory": None if memory is None else round(memory.total() / 1e9, 2),
        "memory": None if memory is None else memory.told(),
        "starts": estimate.starts,
        "does_not_fit": estimate.cure,
    }


def took(manifest: Manifest) -> dict[str, float] | None:
    """Return the seconds and the memory that a finished dataset took, None if nobody measured."""
    seconds = manifest.provenance.get("seconds")
    if seconds is None:
        return None
    memory = manifest.provenance.get("peak_memory_bytes", 0)
    return {"seconds": round(seconds, 1), "gigabytes_of_memory": round(memory / 1e9, 2)}


def same_hardware(here: Run[Any], manifest: Manifest, ours: Mapping[str, Any]) -> bool:
    """Return whether a dataset was computed on hardware like this machine's."""
    names = manifest.provenance.get("environments") or []
    return any(
        all(theirs.get(part) == ours.get(part) for part in ("cpu", "gpus"))
        for theirs in (_environment(here, name) for name in names)
    )


def our_environment(here: Run[Any]) -> Mapping[str, Any]:
    """Return the description of this machine that datasets made here would have."""
    return _environment(here, environment(here.store))


def _environment(here: Run[Any], name: str) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(
            here.store.storage.read(f"environments/{name}.json")
        )
    except (OSError, ValueError):
        return {}
    return content


def _assumed(kind: str) -> str:
    """Say what is assumed of a reward that no model of the recipe gives."""
    return f"rewards: kind {kind} is assumed to take {1e3 * FUNCTION_ROW:g} ms for a response"


def _own_gpu(config: DistillConfig) -> Gpu | None:
    return gpu_named(devices.gpus()[0]) if device_of(config) == "cuda" and devices.gpus() else None


def _shape(here: Run[Any], model: Model) -> tuple[Mapping[str, Any], Shape]:
    content: Mapping[str, Any] = read_json(here.store.path(model) / "config.json")
    return content, Shape.of(content, model.parameters or None)
