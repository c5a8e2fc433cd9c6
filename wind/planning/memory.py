"""Bytes of one process at its peak, part by part, and which setting would make them fit."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from wind.config.models import DType
from wind.config.recipe import DistillConfig
from wind.config.training import TrainingConfig
from wind.planning.shapes import BYTES, Shape
from wind.records import Record

# positions whose logits `SequenceLogps` holds at once, and float32 copies of them with their
# gradient and without
CHUNK: Final = 1024
COPIES: Final = 3
FROZEN_COPIES: Final = 1
# float64 copies of a step's logits while the sampler of transformers draws
DRAWN: Final = 3
# numbers that a layer keeps per token for its backward pass, in hidden and in inner widths: the
# inputs of both norms and of their float32 parts, queries, keys, values, attention, residuals; and
# gate, up, their product, activation
KEPT_HIDDEN: Final = 14
KEPT_INNER: Final = 4
# the same without backward: what is alive at once
LIVE_HIDDEN: Final = 4
LIVE_INNER: Final = 2
# of what one device has; allocators leave holes
USABLE: Final = 0.92


class Memory(Record):
    """The peak of one process: what is on its device, by part, and what ZeRO keeps in the host."""

    parts: dict[str, float]
    host: float = 0.0

    def total(self) -> float:
        """Return the bytes on the device."""
        return sum(self.parts.values())

    def told(self) -> str:
        """Return the sum with its parts, in GB: "3.1 GB = weights 0.5 + ..."."""
        parts = " + ".join(f"{name} {size / 1e9:.2g}" for name, size in self.parts.items() if size)
        return f"{self.total() / 1e9:.3g} GB = {parts}"


def training_memory(
    training: TrainingConfig, shape: Shape, tokens: float, trained: int | None = None
) -> Memory:
    """Return the memory of a rank whose micro-batch has `tokens` padded tokens.

    `trained` is the number of adapted weights, by default all. Per weight there are, in bytes: the
    weight itself; the gradient; and, under ZeRO, a gradient summed in float32, a float32 master, and
    the optimizer's float32 states (AdamW two, RMSprop one). ZeRO 1 shards the last three over
    ranks, 2 the sums too, and 3 the weights.
    """
    size, ranks = BYTES[training.precision], training.ranks
    adapted = shape.parameters if trained is None else trained
    states = {"adamw": 2, "rmsprop": 1}[training.optimizer] * 4.0
    zero = training.zero_stage
    master = 4.0 if zero or training.precision == "bfloat16" else 0.0
    summed = 4.0 if zero else 0.0
    optimizer = adapted * (master + states) / (ranks if zero >= 1 else 1)
    sums = adapted * summed / (ranks if zero >= 2 else 1)
    is_away = training.offload != "none"
    weights = shape.weights(training.precision) / (ranks if zero == 3 else 1)
    gone = weights if training.offload == "optimizer_and_parameters" else 0.0
    layer = shape.parameters / shape.layers * size
    return Memory(
        parts={
            "weights": weights - gone + (2 * layer if zero == 3 else 0.0),
            "gradients": adapted * size / (ranks if zero == 3 else 1),
            "gradient sums": 0.0 if is_away else sums,
            "optimizer": 0.0 if is_away else optimizer,
            "activations": _activations(training, shape, tokens),
            "logits": _logits(shape, tokens),
        },
        host=gone + (optimizer + sums if is_away else 0.0),
    )


def adapter_weights(config: DistillConfig, shape: Shape) -> int | None:
    """Return how many weights LoRA trains; None without it.

    Each adapted layer has two matrices, of its rank and its widths.
    """
    if config.training.lora is None:
        return None
    hidden, inner, kv = shape.hidden, shape.inner, shape.kv
    widths = {
        "q_proj": 2 * hidden,
        "k_proj": hidden + kv,
        "v_proj": hidden + kv,
        "o_proj": 2 * hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": hidden + inner,
    }
    named = config.training.lora.target_modules or tuple(widths)
    return shape.layers * config.training.lora.rank * sum(widths.get(each, 0) for each in named)


def scoring_memory(shape: Shape, dtype: DType, tokens: float, resident: int = 1) -> Memory:
    """Return the memory of scoring a batch of `tokens` with `resident` models loaded."""
    alive = tokens * (LIVE_HIDDEN * shape.hidden + LIVE_INNER * shape.inner) * BYTES[dtype]
    return Memory(
        parts={
            "weights": resident * shape.weights(dtype),
            "activations": alive,
            "logits": _logits(shape, tokens, FROZEN_COPIES),
        }
    )


def sampling_memory(shape: Shape, dtype: DType, rows: float, width: float, is_vllm: bool) -> Memory:
    """Return the memory of sampling `rows` sequences of up to `width` tokens at once.

    The sampler of transformers copies a layer's cache as it grows, and draws in float64.
    """
    cache = rows * width * shape.cache(dtype)
    drawn = 0.0 if is_vllm else rows * shape.vocabulary * 8.0 * DRAWN
    grown = 0.0 if is_vllm else cache / shape.layers
    return Memory(parts={"weights": shape.weights(dtype), "cache": cache + grown, "logits": drawn})


def cure(config: DistillConfig, needed: Callable[[DistillConfig], float], limit: float) -> str:
    """Return the first setting with which training needs at most `limit`, as "set ..."."""
    for changes in _remedies(config.training):
        training = config.training.model_copy(update=changes)
        if needed(config.model_copy(update={"training": training})) <= limit * USABLE:
            said = ", ".join(f"training.{name}={_plain(value)}" for name, value in changes.items())
            return f"set {said}"
    return "set training.lora, a smaller policy, or more GPUs"


def _remedies(training: TrainingConfig) -> Iterator[Mapping[str, Any]]:
    """Yield changes that save memory, those that cost the least first, each with the ones before."""
    changes: dict[str, Any] = {}
    if training.ranks > 1 and training.zero_stage < 3:
        for stage in range(training.zero_stage + 1, 4):
            yield {"zero_stage": stage}
        changes["zero_stage"] = 3
    if training.micro_prompts > 1:
        changes["micro_prompts"] = 1
        yield dict(changes)
    if not training.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if training.precision == "float32":
        changes["precision"] = "bfloat16"
        yield dict(changes)
    if training.offload == "none":
        changes |= {"zero_stage": max(1, changes.get("zero_stage", training.zero_stage))}
        yield changes | {"offload": "optimizer"}
    if training.offload != "optimizer_and_parameters":
        yield changes | {"zero_stage": 3, "offload": "optimizer_and_parameters"}


def _activations(training: TrainingConfig, shape: Shape, tokens: float) -> float:
    size = BYTES[training.precision]
    layer = tokens * (KEPT_HIDDEN * shape.hidden + KEPT_INNER * shape.inner) * size
    if training.gradient_checkpointing:
        return layer + shape.layers * tokens * shape.hidden * size
    return shape.layers * layer


def _logits(shape: Shape, tokens: float, copies: int = COPIES) -> float:
    return min(tokens, CHUNK) * shape.vocabulary * 4.0 * copies


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
