"""Run the probe of this CPU in a process like a worker's."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any, Final

from wind.config.recipe import DistillConfig
from wind.errors import StageError, first_line
from wind.machine import processes
from wind.planning.probe import DEPTHS, Measured, Probe
from wind.planning.shapes import Shape
from wind.planning.work import Prompts, Responses

# FLOP of a measurement of sampling, and of whole passes: a second of a CPU at most. A backward pass
# of few tokens takes longest to clear the gradients of the head, which would count for each token.
SAMPLED: Final = 1e10
PASSED: Final = 5e10
MOST_ROWS: Final = 512
# weights of a probed model of three layers that a process makes in a moment
MOST_WEIGHTS: Final = 4e8
# one thread's FLOP per second where a model is too large to be probed: an assumption
ASSUMED: Final = 3e10
SAID: Final = f"an assumed {ASSUMED / 1e9:g} GFLOP/s of one thread"
SECONDS: Final = 300.0


def probed(
    config: DistillConfig,
    model: Mapping[str, Any],
    shape: Shape,
    prompts: Prompts,
    responses: Responses,
) -> tuple[Measured, str]:
    """Return what this CPU does with the policy's shape, and what that is based on.

    `model` is the policy's config.json. A policy that is too large for a probe, or that fails in
    it, is taken to run at a speed that is assumed.
    """
    layer = (shape.parameters - shape.embedding * (1 if shape.is_tied else 2)) / shape.layers
    head = float(shape.embedding)
    if layer * max(DEPTHS) + 2 * head > MOST_WEIGHTS:
        return _assumed(shape), SAID
    token = 2 * (max(DEPTHS) * layer + head)
    samples, width = config.sampling.samples_per_prompt, prompts.tokens + responses.mean
    at_once = min(config.sampling.shard_prompts, prompts.count, MOST_ROWS // samples)
    rows = max(1, int(PASSED / token / width))
    trained = min(config.training.micro_prompts * samples, rows)
    probe = Probe(
        config={**model},
        layers=shape.layers,
        attention=config.inference.attention,
        dtype=config.inference.dtype,
        precision=config.training.precision,
        is_checkpointed=config.training.gradient_checkpointing,
        sampling=config.sampling,
        prompt_tokens=max(1, round(prompts.tokens)),
        response_tokens=max(1, round(responses.mean)),
        sampled_prompts=max(1, min(at_once, int(SAMPLED / token / (4 * samples)))),
        scored_rows=max(1, min(rows, MOST_ROWS)),
        trained_rows=max(1, trained),
    )
    try:
        return _run(probe), "a probe of this CPU"
    except StageError as error:
        return _assumed(shape), f"{SAID}, since {error}"


def _run(probe: Probe) -> Measured:
    command = processes.python("-m", "wind.planning.probe")
    environment = processes.environment(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    with processes.start(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            said, complaint = process.communicate(probe.model_dump_json().encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise StageError(f"the probe of this CPU took more than {SECONDS:g} s") from error
        finally:
            process.end()
    try:
        return Measured.model_validate(json.loads(said))
    except ValueError as error:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise StageError(
            f"the probe of this CPU failed: {lines[-1] if lines else first_line(error)}"
        ) from error


def _assumed(shape: Shape) -> Measured:
    forward = shape.flops(0) / ASSUMED
    return Measured(
        start=10.0,
        memory=6e8,
        prefill=forward,
        step=shape.weights("float32") / 1e10,
        row=forward,
        forward=forward,
        trained=3 * forward,
        update=5e-9,
    )
