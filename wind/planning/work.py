"""The stages of one iteration: their rows, tokens, seconds, memory and bytes on disk."""

import math
from collections.abc import Sequence
from typing import Final, Self

from wind.config.recipe import DistillConfig
from wind.generations.vllm import CONCURRENT_SEQUENCES
from wind.models import RESIDENT
from wind.planning.memory import (
    USABLE,
    Memory,
    adapter_weights,
    cure,
    sampling_memory,
    scoring_memory,
    training_memory,
)
from wind.planning.rates import Rates
from wind.planning.shapes import BYTES, Shape
from wind.records import Record

# padding of batches that are sorted by length
PADDING: Final = 1.05
# rows that decode beside one that counts: ended ones leave at a quarter of a batch
RUNNING: Final = 1.15
# seconds of a light stage, and per row of its tables
LIGHT: Final = 0.15
LIGHT_ROW: Final = 2e-6
# seconds of a user's own function per response: a guess that a plan says aloud
FUNCTION_ROW: Final = 1e-4
# of a training's memory, what its process holds on to after it: 0.4 to 0.5 were seen on a CPU
LEFT: Final = 0.4
MODELLED: Final = ("generations", "rewards", "logps")
# bytes of DeepSpeed's modules, beyond what every worker imports
DEEPSPEED: Final = 2e8
# bytes per row of a dataset beside its token ids and text, and per token of these
ROW_BYTES: Final = 60
TOKEN_BYTES: Final = 8


class Prompts(Record):
    """The prompts of one split that an iteration samples: how many, and their tokens."""

    count: int
    tokens: float  # mean
    longest: int


class Responses(Record):
    """What lengths of responses, in tokens, are expected, and why."""

    mean: float
    longest: float
    basis: str

    @classmethod
    def assumed(cls, max_new_tokens: int) -> Self:
        """Expect half of the most, with some that reach it: for a policy that nobody has sampled."""
        return cls(
            mean=max(1.0, max_new_tokens / 2),
            longest=max_new_tokens,
            basis=f"responses are assumed to have half of max_new_tokens, {max_new_tokens / 2:g}",
        )

    def longest_of(self, rows: int) -> float:
        """Return the expected longest of so many responses, as if lengths were uniform."""
        return self.mean + (self.longest - self.mean) * (rows - 1) / (rows + 1)


class Device(Record):
    """Where stages run: its kind, how much memory each process has, and its rates."""

    kind: str  # cpu | cuda
    memory: float  # bytes, of one GPU or of the whole machine
    rates: Rates


class Estimate(Record):
    """What one dataset is expected to take."""

    rows: int
    tokens: float | None = None  # sampled, or passed through a model
    seconds: float
    megabytes: float  # kept
    scratch: float = 0.0  # megabytes while it runs: checkpoints
    memory: Memory | None = None  # of one process
    starts: int = 0  # engines and groups of ranks
    cure: str | None = None  # None: it fits


class Iteration:
    """The arithmetic of one iteration of a recipe on a device."""

    def __init__(
        self,
        config: DistillConfig,
        shape: Shape,
        reward: Shape | None,
        device: Device,
        responses: Responses,
    ) -> None:
        self._config, self._shape, self._reward = config, shape, reward
        self._device, self._responses = device, responses
        self._rates = device.rates
        self._lanes = config.workers.processes
        # a worker that also trains keeps what it imported for that
        self._process = device.rates.memory + (DEEPSPEED if self._is_shared() else 0.0)
        self._is_vllm = config.sampling.backend != "transformers" and device.kind == "cuda"

    def estimates(self, train: Prompts, held_out: Prompts, first: bool) -> dict[str, Estimate]:
        """Return the estimates by the names that datasets have in versions.

        `first` is whether nothing has been started yet, and the opponent not been sampled.
        """
        samples, asked = (
            self._config.sampling.samples_per_prompt,
            self._config.evaluation.samples_per_prompt,
        )
        found: dict[str, Estimate] = {}
        is_on_policy = self._config.objective.steps_per_refresh is not None
        if is_on_policy:
            found["rollouts"] = self._rollouts(train)
            found["training"] = self._light(train.count)
        else:
            found["generations"] = self._sampled(train, samples, is_start=first)
            found["rewards"] = self._rewarded(train, samples)
            found["win_rates"] = self._light(train.count * samples)
            found["selections"] = self._light(train.count * samples)
            frozen = 1 if first or self._config.reference.kind == "previous" else 2
            found["logps"] = self._scored(train, samples, frozen)
            found["training"] = self._trained(train, samples, is_start=first)
        sides = ("eval_", "reference_") if first else ("eval_",)
        for side in sides:
            found[f"{side}generations"] = self._sampled(held_out, asked, is_start=False)
            found[f"{side}rewards"] = self._rewarded(held_out, asked)
        found["eval_logps"] = self._scored(held_out, asked, 2)
        found["evaluation"] = self._light(held_out.count * asked)
        found["metrics"] = self._light(30)
        trained = found["training"].memory
        if self._is_shared() and trained is not None:
            left = LEFT * (trained.total() - self._process)
            for name in found.keys() & {f"{side}{noun}" for side in sides for noun in MODELLED}:
                found[name] = _with_left(found[name], left)
        return found

    def _sampled(self, prompts: Prompts, samples: int, *, is_start: bool) -> Estimate:
        """Estimate sampling: prompts are prefilled once, and rows decode together.

        vLLM decodes as many rows as its cache has room for, and keeps them full until the last
        ones: its steps are all tokens over the rows, and one longest response. transformers runs
        batch after batch, each to its longest response.
        """
        rates, mean = self._rates, self._responses.mean
        sampling, inference = self._config.sampling, self._config.inference
        rows = prompts.count * samples
        width: float = prompts.longest + sampling.max_new_tokens
        if self._is_vllm:
            room = self._device.memory * USABLE - self._shape.weights(inference.dtype)
            room -= self._process
            decoded = self._shape.cache(inference.dtype) * (prompts.tokens + mean)
            at_once = min(CONCURRENT_SEQUENCES, rows / self._lanes, max(1.0, room // decoded))
            width = prompts.tokens + mean
            steps = rows * mean / at_once / self._lanes + self._responses.longest
        else:
            in_shard = min(sampling.shard_prompts, prompts.count) * samples
            at_once = float(min(in_shard, max(samples, inference.batch_tokens // width)))
            shards = math.ceil(prompts.count / sampling.shard_prompts)
            steps = (
                math.ceil(shards / self._lanes)
                * math.ceil(in_shard / at_once)
                * self._responses.longest
            )
        seconds = (
            prompts.count * prompts.tokens * rates.prefill / self._lanes
            + steps * rates.step
            + rows * mean * RUNNING * rates.row / self._lanes
            + self._shape.weights(inference.dtype) / rates.reading
        )
        if self._device.kind == "cuda":
            seconds += rates.start + rates.engine_start
        memory = sampling_memory(
            self._shape, inference.dtype, at_once, width, is_vllm=self._is_vllm
        )
        return self._estimate(
            rows,
            seconds,
            tokens=rows * mean,
            row_tokens=mean,
            memory=memory,
            cure="set inference.dtype=bfloat16, a lower inference.batch_tokens, or a larger GPU",
            starts=self._lanes if is_start or self._device.kind == "cuda" else 0,
        )

    def _rewarded(self, prompts: Prompts, samples: int) -> Estimate:
        rows = prompts.count * samples
        if self._reward is None:
            return self._estimate(rows, LIGHT + rows * FUNCTION_ROW)
        tokens = rows * (prompts.tokens + self._responses.mean) * PADDING
        if self._config.reward.kind == "pairwise":
            # every ordered pair of a prompt's responses is one input
            tokens *= samples - 1
        inference = self._config.inference
        share = self._reward.flops(prompts.tokens) / self._shape.flops(prompts.tokens)
        seconds = tokens * self._rates.forward * share / self._lanes
        memory = scoring_memory(self._reward, inference.dtype, min(tokens, inference.batch_tokens))
        return self._estimate(
            rows,
            LIGHT + seconds + self._restart(),
            tokens=tokens,
            memory=memory,
            cure="set a lower inference.batch_tokens",
        )

    def _scored(self, prompts: Prompts, samples: int, models: int) -> Estimate:
        rows, inference = prompts.count * samples, self._config.inference
        tokens = rows * (prompts.tokens + self._responses.mean) * PADDING
        loading = models * self._shape.weights(inference.dtype) / self._rates.reading
        seconds = models * tokens * self._rates.forward / self._lanes + loading + self._restart()
        resident = min(models, RESIDENT)
        memory = scoring_memory(
            self._shape, inference.dtype, min(tokens, inference.batch_tokens), resident
        )
        return self._estimate(
            rows,
            seconds,
            tokens=models * tokens,
            memory=memory,
            cure="set inference.dtype=bfloat16 or a lower inference.batch_tokens",
        )

    def _trained(self, prompts: Prompts, samples: int, *, is_start: bool) -> Estimate:
        """Estimate training: all padded tokens over the ranks, every step's update, the export."""
        training, shape, rates = self._config.training, self._shape, self._rates
        rows = prompts.count * samples
        together = training.micro_prompts * samples
        width = prompts.tokens + self._responses.longest_of(together)
        passed = training.epochs * rows * width
        steps = training.epochs * math.ceil(prompts.count / training.batch_prompts)
        published = shape.weights(training.precision)
        seconds = (
            passed * rates.trained / training.ranks
            + steps * rates.update
            + published * (1 / rates.reading + 2 / rates.writing)
        )
        if is_start or self._device.kind == "cuda" or training.zero_stage == 3:
            seconds += rates.training_start + (0 if self._device.kind == "cpu" else rates.start)
        micro = together * (prompts.longest + self._responses.longest)
        memory = training_memory(training, shape, micro, adapter_weights(self._config, shape))
        if self._is_shared():
            kept = RESIDENT * shape.weights(self._config.inference.dtype)
            memory = Memory(parts={"resident": kept, **memory.parts}, host=memory.host)

        def needed(config: DistillConfig) -> float:
            tokens = micro * config.training.micro_prompts / training.micro_prompts
            of = training_memory(config.training, shape, tokens, adapter_weights(config, shape))
            return self._held(of)

        states = {"adamw": 12.0, "rmsprop": 8.0}[training.optimizer]
        trained = adapter_weights(self._config, shape) or shape.parameters
        # two checkpoints are there while the second is written
        checkpoints = 2 * trained * (states + BYTES[training.precision])
        is_checkpointed = steps > training.checkpoint_steps
        made = self._estimate(
            steps * 6,
            seconds,
            tokens=passed,
            memory=memory,
            cure=cure(self._config, needed, self._limit()),
            starts=1 if self._device.kind == "cuda" or training.ranks > 1 else 0,
        )
        scratch = checkpoints / 1e6 if is_checkpointed else 0.0
        megabytes = made.megabytes + published / 1e6
        return made.model_copy(update={"megabytes": megabytes, "scratch": scratch})

    def _rollouts(self, prompts: Prompts) -> Estimate:
        """Estimate a training that samples with transformers between its steps."""
        per_epoch = self._config.responses_per_prompt() / self._config.training.epochs
        sampled = self._sampled(prompts, int(per_epoch), is_start=False)
        trained = self._trained(prompts, self._config.sampling.samples_per_prompt, is_start=True)
        seconds = trained.seconds + self._config.training.epochs * sampled.seconds
        rows = prompts.count * self._config.responses_per_prompt()
        return trained.model_copy(update={"rows": rows, "seconds": seconds})

    def _light(self, rows: int) -> Estimate:
        return self._estimate(rows, LIGHT + rows * LIGHT_ROW)

    def _restart(self) -> float:
        """Return the seconds until a worker of another kind has its GPU."""
        return self._rates.start if self._device.kind == "cuda" else 0.0

    def _is_shared(self) -> bool:
        """Return whether the worker that scored also trains, and keeps its models meanwhile."""
        training = self._config.training
        return self._device.kind == "cpu" and training.ranks == 1 and training.zero_stage < 3

    def _limit(self) -> float:
        """Return the bytes that one process may take."""
        return self._device.memory / (self._lanes if self._device.kind == "cpu" else 1)

    def _held(self, memory: Memory) -> float:
        host = memory.host if self._device.kind == "cpu" else 0.0
        return memory.total() + host + self._process

    def _estimate(
        self,
        rows: int,
        seconds: float,
        *,
        tokens: float | None = None,
        row_tokens: float = 0.0,
        memory: Memory | None = None,
        cure: str | None = None,
        starts: int = 0,
    ) -> Estimate:
        if memory is not None:
            memory = Memory(parts={"process": self._process, **memory.parts}, host=memory.host)
        fits = memory is None or memory.total() <= self._limit() * USABLE
        return Estimate(
            rows=rows,
            tokens=tokens,
            seconds=seconds,
            megabytes=rows * (ROW_BYTES + row_tokens * TOKEN_BYTES) / 1e6,
            memory=memory,
            starts=starts,
            cure=None if fits else cure,
        )


def _with_left(estimate: Estimate, left: float) -> Estimate:
    """Return the estimate of a stage in a process that has trained before."""
    if estimate.memory is None:
        return estimate
    parts = {**estimate.memory.parts, "left by training": left}
    return estimate.model_copy(update={"memory": Memory(parts=parts)})


def prompts_of(lengths: Sequence[int]) -> Prompts:
    """Return the summary of prompts of these lengths."""
    return Prompts(
        count=len(lengths),
        tokens=sum(lengths) / max(1, len(lengths)),
        longest=max(lengths, default=1),
    )
