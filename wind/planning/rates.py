"""Seconds per token, step and byte of one device, counted or measured."""

from typing import Final

from wind.config.models import DType
from wind.config.recipe import DistillConfig
from wind.planning.hardware import Gpu
from wind.planning.probe import Measured
from wind.planning.shapes import BYTES, Shape
from wind.records import Record

# Shares of the data sheet that good kernels reach on batches of thousands of tokens: 0.35 to 0.45
# of the arithmetic in training as reported for Llama, more forward only, and of the bandwidth.
TRAINING_SHARE: Final = 0.35
FORWARD_SHARE: Final = 0.45
BANDWIDTH_SHARE: Final = 0.6
# backward costs twice a forward pass; recomputed activations one more
BACKWARD: Final = 2
# seconds of launching one layer's kernels, one by one; vLLM replays a graph of all of them
LAUNCH: Final = 1e-3
GRAPH: Final = 4e-3
# seconds of starting processes, by what was seen on a CPU and is said of vLLM on GPUs
TORCH_START: Final = 10.0
VLLM_START: Final = 60.0
# of torchrun, DeepSpeed and NCCL beyond that
RANKS_START: Final = 20.0
# importing DeepSpeed takes about as long as all that a worker imports before
DEEPSPEED_SHARE: Final = 1.0
# bytes per second of reading weights from a disk and of hashing and writing them
READING: Final = 1.0e9
WRITING: Final = 0.5e9


class Rates(Record):
    """What one process of each kind does, in seconds."""

    start: float  # of a worker
    engine_start: float  # of a sampler's engine beyond that
    training_start: float  # of a training beyond that
    prefill: float  # per prompt token
    step: float  # per decoding step
    row: float  # per row of a decoding step
    forward: float  # per padded token, frozen
    trained: float  # per padded token, forward and backward
    update: float  # per optimizer step
    reading: float = READING  # bytes per second
    writing: float = WRITING
    memory: float  # bytes of a process before it loads anything
    basis: str  # what these numbers come from, in a few words


def of_cpu(measured: Measured, shape: Shape) -> Rates:
    """Return the rates of a CPU that was probed with the policy's shape."""
    return Rates(
        start=measured.start,
        engine_start=0.0,
        training_start=measured.start * DEEPSPEED_SHARE,
        prefill=measured.prefill,
        step=measured.step,
        row=measured.row,
        forward=measured.forward,
        trained=measured.trained,
        update=measured.update * shape.parameters,
        memory=measured.memory,
        basis="a probe of this CPU",
    )


def of_gpu(gpu: Gpu, config: DistillConfig, shape: Shape, context: float) -> Rates:
    """Return the rates of one GPU by its data sheet.

    A decoding step reads every weight once, and for each row its cache of `context` tokens; a
    token of any other pass is bound by arithmetic. `update` reads and writes what an optimizer
    keeps for a parameter, 16 bytes, on the GPU's share of them.
    """
    training, is_vllm = config.training, config.sampling.backend != "transformers"
    dtype: DType = config.inference.dtype
    passes = 1 + BACKWARD + (1 if training.gradient_checkpointing else 0)
    forward = shape.flops(context / 2) / (gpu.flops(dtype) * FORWARD_SHARE)
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
    peak = gpu.flops(training.precision) * TRAINING_SHARE
    owned = shape.parameters / (training.ranks if training.zero_stage else 1)
    return Rates(
        start=TORCH_START,
        engine_start=VLLM_START if is_vllm else 0.0,
        training_start=RANKS_START,
        prefill=forward,
        step=shape.weights(dtype) / bandwidth + (GRAPH if is_vllm else LAUNCH * shape.layers),
        row=shape.flops(context) / (gpu.flops(dtype) * FORWARD_SHARE)
        + shape.cache(dtype) * context / bandwidth,
        forward=forward,
        trained=passes * shape.flops(context / 2) / peak,
        update=2 * 16 * owned / bandwidth + BYTES[training.precision] * shape.parameters / 1e11,
        memory=1.5e9,
        basis=f"the data sheet of {gpu.name}",
    )
