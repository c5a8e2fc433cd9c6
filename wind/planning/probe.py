"""Measure this CPU on the stages' own code, with a few layers of the policy's shape.

`python -m wind.planning.probe` reads a `Probe` as JSON and prints a `Measured`. One layer and three
are timed on random weights; a layer costs half of the difference, everything else is in the rest.
Seconds are of the processor, not of the clock, so that other work on the machine does not count.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from wind.config.models import Attention, DType
from wind.config.sampling import SamplingConfig
from wind.machine.terminal import say_json
from wind.records import Record

if TYPE_CHECKING:
    import torch

DEPTHS: Final = (1, 3)
# decoding steps that are timed
STEPS: Final = 4
# turns of a measurement, fewer once they took so many seconds: the first one warms up
TURNS: Final = 3
LONG_TURN: Final = 0.3
# no policy has this token, so that no response ends
NEVER: Final = (-1,)


class Probe(Record):
    """What to measure: a model, and the batches of a run, cut to what takes a moment."""

    config: dict[str, Any]
    layers: int
    attention: Attention
    dtype: DType  # of frozen models
    precision: DType  # of training
    is_checkpointed: bool
    sampling: SamplingConfig
    prompt_tokens: int
    response_tokens: int
    sampled_prompts: int  # of one batch
    scored_rows: int
    trained_rows: int


class Measured(Record):
    """Processor seconds of one thread for the whole model, and a process's bytes with its imports."""

    start: float  # of importing torch, transformers and the stages
    memory: float
    prefill: float  # per prompt token
    step: float  # per decoding step of a batch, whatever its rows
    row: float  # per row of a decoding step
    forward: float  # per padded token, frozen
    trained: float  # per padded token, forward and backward
    update: float  # per parameter, one step of AdamW


def measure(probe: Probe, start: float, memory: float) -> Measured:
    """Run the probe; `start` and `memory` are what the process took to get here."""
    depths = sorted({min(depth, probe.layers) for depth in DEPTHS})
    found = [_at_depth(probe, depth) for depth in depths]
    whole = {
        name: _extrapolated([each[name] for each in found], depths, probe.layers)
        for name in found[0]
    }
    return Measured(start=start, memory=memory, update=_update(), **whole)


def _at_depth(probe: Probe, depth: int) -> dict[str, float]:
    """Return the seconds of `Measured` for a model of `depth` layers."""
    import torch

    from wind.models.sequence_logps import SequenceLogps

    torch.manual_seed(0)
    model = _model(probe, depth, probe.dtype)
    seconds = _sampled(probe, model.eval().requires_grad_(False))
    scorer = SequenceLogps(model)
    tensors = _batch(probe, probe.scored_rows)
    with torch.inference_mode():
        seconds["forward"] = _seconds(lambda: scorer(*tensors)) / tensors[0].numel()
    trained = _model(probe, depth, probe.precision)
    if probe.is_checkpointed:
        trained.gradient_checkpointing_enable({"use_reentrant": False})
    trainer, tensors = SequenceLogps(trained.train()), _batch(probe, probe.trained_rows)
    seconds["trained"] = _seconds(lambda: trainer(*tensors).sum().backward()) / tensors[0].numel()
    return seconds


def _model(probe: Probe, depth: int, dtype: DType) -> Any:
    import torch
    from transformers import AutoConfig

    from wind.models.pretrained import model_without_weights

    attention = None if probe.attention == "auto" else probe.attention
    config = AutoConfig.for_model(**probe.config, attn_implementation=attention)
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    return model_without_weights(config).to(getattr(torch, dtype))


def _sampled(probe: Probe, model: Any) -> dict[str, float]:
    """Return the seconds of prefilling a token, of a step, and of a row of a step.

    One step and `STEPS` more are timed, for all prompts of a batch and for a quarter of them.
    """
    from wind.generations import Request
    from wind.generations.hf import TransformersSampler

    sampler = TransformersSampler(model, NEVER, batch_tokens=2**31)
    vocabulary = model.config.get_text_config().vocab_size

    def seconds(prompts: int, steps: int) -> float:
        ids = [1 + token % (vocabulary - 1) for token in range(probe.prompt_tokens)]
        requests = [Request(str(number), ids, seed=number * 64) for number in range(prompts)]
        sampling = probe.sampling.model_copy(update={"max_new_tokens": steps})
        return _seconds(lambda: sampler.sample(requests, sampling, lambda done, total: None))

    most, least = probe.sampled_prompts, max(1, probe.sampled_prompts // 4)
    first = seconds(most, 1)
    full = (seconds(most, 1 + STEPS) - first) / STEPS
    if most == least:
        step, row = full, 0.0
    else:
        quarter = (seconds(least, 1 + STEPS) - seconds(least, 1)) / STEPS
        rows = (most - least) * probe.sampling.samples_per_prompt
        row = max(0.0, (full - quarter) / rows)
        step = max(0.0, full - row * most * probe.sampling.samples_per_prompt)
    return {"prefill": first / (most * probe.prompt_tokens), "step": step, "row": row}


def _batch(probe: Probe, rows: int) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return token ids, attention mask and response mask of rows without padding."""
    from wind.logps import padded

    prompts = [[1] * probe.prompt_tokens] * rows
    return padded(prompts, [[1] * probe.response_tokens] * rows)


def _update() -> float:
    """Return the seconds of AdamW for one parameter in float32."""
    import torch

    weights = torch.nn.Parameter(torch.zeros(2**20))
    weights.grad = torch.ones_like(weights)
    optimizer = torch.optim.AdamW([weights], lr=1e-6)
    return _seconds(optimizer.step) / weights.numel()


def _seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of `work`, the least of up to three turns."""
    turns: list[float] = []
    while len(turns) < TURNS and sum(turns) < LONG_TURN:
        began = time.process_time()
        work()
        turns.append(time.process_time() - began)
    return min(turns)


def _extrapolated(seconds: list[float], depths: list[int], layers: int) -> float:
    if len(depths) == 1:
        return seconds[0]
    layer = max(0.0, (seconds[1] - seconds[0]) / (depths[1] - depths[0]))
    return seconds[0] + layer * (layers - depths[0])


def main() -> None:
    """Measure what standard input asks for, and print it as JSON."""
    import torch

    # what a worker imports before its first shard
    import wind.generations.hf
    import wind.models.sequence_logps  # noqa: F401
    from wind.store.provenance import peak_memory

    torch.set_num_threads(1)
    probe = Probe.model_validate_json(sys.stdin.buffer.read())
    _model(probe, 1, probe.dtype)  # the model's class is imported by then, too
    say_json(measure(probe, time.process_time(), float(peak_memory())))


if __name__ == "__main__":
    main()
