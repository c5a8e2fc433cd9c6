"""A short run of every stage on the user's own hardware, one check after the other.

The policy is the demo's shape with random weights, and everything is in a temporary store, so that
the checks are about the machine alone: whether the engines of a recipe start, agree, train and
resume. A check that cannot run because an earlier one failed is skipped.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from flows.doctor import machine
from flows.doctor.recipe import PROMPTS
from tasks.devices import described, device_of, refuse_missing_gpus
from tasks.workers import Pool, kind_of
from wind.config.recipe import DistillConfig
from wind.demo.sums import write_prompts
from wind.errors import ConfigError, StageError, WindError, first_line
from wind.generations import GenerationsSpec
from wind.logps import LogpsSpec
from wind.machine import devices, processes
from wind.planning.hardware import memory_bytes
from wind.prompts import import_prompts, prompts_spec
from wind.records import Record
from wind.redaction import redacted
from wind.rewards import RewardsSpec, resolve_reward
from wind.selections import SelectionsSpec
from wind.stages import Job, Place, Spec, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.imports import import_model
from wind.training import TrainingSpec
from wind.win_rates import WinRatesSpec

# nats per token between the sampler and the trainer: kernels round differently; other weights are
# off by more than a nat
GAP: Final = {"float32": 1e-3, "bfloat16": 0.05}
# bytes below which no run of any use has room
LEAST_DISK: Final = 5e9
LEAST_MEMORY: Final = 2e9
# where the store's folder is slower than this, checkpoints take longer than training
SLOW: Final = 50e6
# distributions that each kind of worker cannot do without
NEEDED: Final[Mapping[str, str]] = {
    "transformers": "transformers",
    "training": "deepspeed",
    "vllm": "vllm",
}
POLICIES: Final = (
    "import sys; from pathlib import Path; from wind.demo.policy import random_policy; "
    "[random_policy(Path(folder), seed=seed) for seed, folder in enumerate(sys.argv[1:])]"
)
# of a process that imports torch and transformers from a cold disk
SLOWEST: Final = 300.0

Outcome = Literal["pass", "fail", "skip"]


class Check(Record):
    """One check: how it came out, in a line of words, and its numbers."""

    name: str
    outcome: Outcome
    said: str
    seconds: float
    numbers: dict[str, Any] = {}


@dataclass
class Doctor:
    """The checks of one machine, in order, under the settings of `config`."""

    config: DistillConfig
    folder: Path  # empty, for the store and the models
    root: Path  # where the user's stores are
    pool: Pool | None = None  # workers that somebody else ends; by default its own
    checks: list[Check] = field(default_factory=list)
    _numbers: dict[str, Any] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict)
    _pool: Pool = field(init=False)

    def examine(self, tell: Callable[[Check], None]) -> list[Check]:
        """Run all checks, tell each when it is done, and return them."""
        steps: tuple[tuple[str, str | None, Callable[[], str]], ...] = (
            ("machine", None, self._machine),
            ("devices", None, self._devices),
            ("interpreters", None, self._interpreters),
            ("disk", None, self._disk),
            ("prompts", "interpreters", self._prompts),
            ("sampler", "prompts", self._sampler),
            ("reload", "sampler", self._reload),
            ("log-probabilities", "reload", self._agreement),
            ("training", "log-probabilities", self._training),
            ("resume", "training", self._resume),
        )
        own = contextlib.closing(Pool(self.config.workers, self._device, self.folder / "logs"))
        with contextlib.nullcontext(self.pool) if self.pool else own as self._pool:
            for name, needed, step in steps:
                check = self._checked(name, needed, step)
                self.checks.append(check)
                tell(check)
        return self.checks

    def _checked(self, name: str, needed: str | None, step: Callable[[], str]) -> Check:
        if any(each.name == needed and each.outcome != "pass" for each in self.checks):
            return Check(name=name, outcome="skip", said=f"needs {needed}", seconds=0.0)
        self._numbers = {}
        began, outcome = time.monotonic(), "pass"
        try:
            said = step()
        except (WindError, OSError) as error:
            outcome, said = "fail", self._clean(first_line(error))
        seconds = round(time.monotonic() - began, 1)
        found = {"name": name, "outcome": outcome, "said": said, "seconds": seconds}
        return Check.model_validate(found | {"numbers": self._numbers})

    def _clean(self, text: str) -> str:
        """Return a message without secrets, this user's home and the temporary folder."""
        home = os.path.expanduser("~")
        text = redacted(text).replace(str(self.folder), "the temporary folder")
        return text.replace(home, "~") if home != "/" else text

    # ------------------------------------------------------------------------------------- machine

    def _machine(self) -> str:
        cores, free = len(os.sched_getaffinity(0)), machine.free_memory()
        self._numbers = {
            "platform": platform.platform(),
            "cores": cores,
            "memory_gb": round(memory_bytes() / 1e9, 1),
            "free_memory_gb": round(free / 1e9, 1),
        }
        if free < LEAST_MEMORY:
            raise StageError(f"{free / 1e9:.1f} GB of memory are free: end what uses the rest")
        return f"{cores} cores, {free / 1e9:.1f} of {memory_bytes() / 1e9:.1f} GB of memory free"

    def _devices(self) -> str:
        driver = devices.driver()
        self._numbers = {
            "gpus": list(driver.names),
            "gpu_memory_gb": [round(size / 1e9, 1) for size in driver.memory],
            "driver_cuda": driver.cuda,
            "device": self._device,
        }
        refuse_missing_gpus(self.config)
        sizes = ", ".join(f"{size / 1e9:.0f}" for size in sorted(set(driver.memory)))
        more = f", {sizes} GB each, driver for CUDA {driver.cuda}" if driver.names else ""
        return f"{described(self.config)}{more}"

    def _interpreters(self) -> str:
        kinds = dict.fromkeys(("transformers", "training", self._backend))
        for kind in kinds:
            python = self.config.workers.python.get(kind, sys.executable)  # type: ignore[call-overload]
            found = self._numbers[kind] = machine.versions(python)
            needed = NEEDED[kind]
            if needed not in found and f"{needed}-cpu" not in found:
                raise ConfigError(
                    f"{needed} is not installed for {kind} workers: make setup, or set "
                    f"workers.python.{kind} to an interpreter that has it"
                )
        theirs = self._numbers["training"]
        return ", ".join(f"{name} {version}" for name, version in theirs.items())

    def _disk(self) -> str:
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        writing, reading = machine.disk_speed(self.root)
        self._numbers = {
            "free_gb": round(free / 1e9, 1),
            "write_mb_s": round(writing / 1e6),
            "read_and_hash_mb_s": round(reading / 1e6),
        }
        if free < LEAST_DISK:
            raise StageError(f"{free / 1e9:.1f} GB of disk are free: set root to a larger one")
        if writing < SLOW:
            raise StageError(
                f"the store's disk writes {writing / 1e6:.0f} MB/s: set root to a faster one"
            )
        return (
            f"{free / 1e9:.0f} GB free, writes {writing / 1e6:.0f} MB/s, reads and hashes "
            f"{reading / 1e6:.0f} MB/s"
        )

    # -------------------------------------------------------------------------------------- stages

    def _prompts(self) -> str:
        write_prompts(self.folder / "prompts.jsonl", count=PROMPTS)
        folders = [self.folder / f"policy-{seed}" for seed in (0, 1)]
        # in a process of its own: engines print, and torch may take a GPU
        python = self.config.workers.python.get("transformers", sys.executable)
        command = processes.python("-c", POLICIES, *map(str, folders), interpreter=python)
        try:
            processes.run(command, env=processes.environment(HF_HUB_OFFLINE="1"), timeout=SLOWEST)
        except subprocess.SubprocessError as error:
            raise StageError(
                f"transformers writes no model ({machine.last_line(error)}): make setup"
            ) from error
        policies = [import_model(self._store, folder) for folder in folders]
        config = self.config.prompts.model_copy(
            update={"source": str(self.folder / "prompts.jsonl")}
        )
        source = import_prompts(self._store, config)
        spec = prompts_spec(self._store, config, source, policies[0], self.config.seed)
        self._made |= {"policies": policies, "prompts": self._compute("prompts", spec)}
        return f"{self._made['prompts'].rows} prompts rendered by a worker"

    def _sampler(self) -> str:
        said = self._sample(0)
        return f"{self._backend}, {said}"

    def _reload(self) -> str:
        """Sample other weights in the same engine, with the log-probabilities of these."""
        said = self._sample(1)
        if self._means()[0] == self._means()[1]:
            raise StageError(
                "the sampler answers with the weights that it had before: set "
                "workers.keep_warm=never, and report this"
            )
        return f"other weights in the same worker, {said}"

    def _sample(self, number: int) -> str:
        policy: Model = self._made["policies"][number]
        spec = GenerationsSpec.of(self.config, self._inputs(policy))
        began = time.monotonic()
        made = self._made[f"generations-{number}"] = self._compute("generations", spec)
        seconds = time.monotonic() - began
        manifest = self._store.manifest(made)
        tokens = made.rows * manifest.numbers["mean_response_tokens"]
        return self._speed(tokens, seconds, manifest.provenance)

    def _agreement(self) -> str:
        """Hold what the sampler said of its responses against the pass that training uses."""
        gaps, seconds, tokens = [], 0.0, 0.0
        for number, policy in enumerate(self._made["policies"]):
            made = self._made[f"generations-{number}"]
            inputs = self._inputs(policy) | {"generations": made, "reference": policy}
            began = time.monotonic()
            scored = self._compute("logps", LogpsSpec.of(self.config, inputs))
            seconds += time.monotonic() - began
            self._made[f"logps-{number}"] = scored
            rows = self._store.frame(made).join(
                self._store.frame(scored), on=["prompt_id", "sample_index"], validate="1:1"
            )
            count = float(rows["response_tokens"].sum())
            gaps.append(float((rows["logp_sampler"] - rows["logp_policy"]).abs().sum()) / count)
            tokens += count + rows.height * 9
        gap, most = max(gaps), GAP[self.config.inference.dtype]
        speed = self._speed(tokens, seconds, {})
        self._numbers |= {"gap_nats_per_token": gap}
        if not gap <= most:
            raise StageError(
                f"the sampler's log-probabilities are {gap:.2g} nats per token from the trainer's, "
                f"and {most:g} is allowed: set sampling.backend=transformers, or "
                "inference.dtype=float32, and report this"
            )
        return f"{gap:.1e} nats per token from the trainer's, {speed}"

    def _training(self) -> str:
        """Take two ZeRO steps on all GPUs, or on CPU ranks; the export is verified by reloading."""
        policy: Model = self._made["policies"][0]
        made: dict[str, Any] = self._inputs(policy) | {
            "generations": self._made["generations-0"],
            "logps": self._made["logps-0"],
            "reward": resolve_reward(self._store, self.config.reward, "reward"),
        }
        for noun, spec in (
            ("rewards", RewardsSpec),
            ("win_rates", WinRatesSpec),
            ("selections", SelectionsSpec),
        ):
            made[noun] = self._compute(noun, spec.of(self.config, made))
        self._made["spec"] = TrainingSpec.of(self.config, made)
        return self._train(keep_state=True)

    def _resume(self) -> str:
        """Train again: from the state that the training before left, to the same model."""
        before = self._made["model"]
        said = self._train(keep_state=False)
        is_same = self._made["model"] == before
        self._numbers["same_bytes"] = is_same
        if not is_same and self._device == "cpu":
            raise StageError(
                "a resumed training ends with other weights: the disk of the store may lose data"
            )
        return f"{'the same model, byte for byte' if is_same else 'a model of other bytes'}, {said}"

    def _train(self, *, keep_state: bool) -> str:
        began = time.monotonic()
        made = self._compute("training", self._made["spec"], keep_state=keep_state)
        seconds = time.monotonic() - began
        manifest = self._store.manifest(made)
        self._made["model"] = manifest.outputs["model"]
        training = self.config.training
        self._numbers = {
            "ranks": training.ranks,
            "zero_stage": training.zero_stage,
            "steps": manifest.numbers["steps"],
            "memory_gb": round(manifest.provenance["peak_memory_bytes"] / 1e9, 2),
        }
        return (
            f"{manifest.numbers['steps']:g} steps of ZeRO {training.zero_stage} on "
            f"{training.ranks} ranks in {seconds:.0f} s"
        )

    # ------------------------------------------------------------------------------------- the rest

    @cached_property
    def _device(self) -> Literal["cpu", "cuda"]:
        return device_of(self.config)

    @cached_property
    def _backend(self) -> str:
        return self.config.sampling.backend

    @cached_property
    def _store(self) -> Store:
        return Store(self.folder / "store")

    def _compute(self, stage: str, spec: Spec, *, keep_state: bool = False) -> Dataset:
        place = Place(root=self._store.address, device=self._device, keep_state=keep_state)
        job = Job(stage=stage, spec=spec.model_dump(mode="json"), place=place)
        kind = kind_of(job)
        if kind is None:
            return run(job, lambda done, total: None)
        return self._pool.compute(job, kind, lambda done, total: None)

    def _inputs(self, policy: Model) -> dict[str, Any]:
        inputs = {"policy": policy, "prompts": self._made["prompts"], "split": "train"}
        return inputs | {"iteration": 1, "parts": 1}

    def _means(self) -> list[float]:
        made = (self._made[f"generations-{number}"] for number in (0, 1))
        return [self._store.manifest(each).numbers["mean_logp_sampler"] for each in made]

    def _speed(self, tokens: float, seconds: float, provenance: Mapping[str, Any]) -> str:
        memory = provenance.get("peak_memory_bytes", 0) / 1e9
        self._numbers = {"tokens_per_second": round(tokens / max(seconds, 1e-3), 1)}
        if memory:
            self._numbers["memory_gb"] = round(memory, 2)
        said = f"{self._numbers['tokens_per_second']:g} tokens/s with its start"
        return said + (f", {memory:.2g} GB" if memory else "")
