"""The recipe of the checks: the demo's task, on the devices and engines that are examined."""

import os
from typing import Any, Final

from tasks.devices import device_of
from tasks.run import backend_of, selection_of
from wind.config.recipe import DistillConfig
from wind.config.training import TrainingConfig
from wind.machine import devices

PROMPTS: Final = 32
RECIPE: Final[dict[str, Any]] = {
    "run": "doctor",
    "policy": {"path": ""},
    "prompts": {"source": "", "eval_fraction": 0.2},
    "reward": {"kind": "rule", "function": "wind.rewards.gsm8k:exact_match"},
    "sampling": {"samples_per_prompt": 4, "max_new_tokens": 16},
    "training": {"batch_prompts": 16, "micro_prompts": 1, "checkpoint_steps": 1},
}


def examined_config(given: DistillConfig | None) -> DistillConfig:
    """Return the recipe of the checks: the demo's task, on the devices of `given` or the default.

    From `given` come everything that says where and by what stages run: workers, dtypes, attention,
    backend, ZeRO stage, offload, optimizer, LoRA. All GPUs train, or two ranks on a CPU.
    """
    base = DistillConfig.model_validate(RECIPE)
    if given is not None:
        sampling = base.sampling.model_copy(update={"backend": given.sampling.backend})
        kept = TrainingConfig.model_fields.keys() - {"batch_prompts", "micro_prompts", "epochs"}
        training = {name: getattr(given.training, name) for name in kept - {"lora"}}
        base = base.model_copy(
            update={
                "workers": given.workers,
                "inference": given.inference,
                "sampling": sampling,
                "training": base.training.model_copy(update=training | {"checkpoint_steps": 1}),
            }
        )
    gpus = len(devices.gpus()) if device_of(base) == "cuda" else 0
    ranks = gpus or min(2, len(os.sched_getaffinity(0)))
    training = {"ranks": ranks, "micro_prompts": 1, "batch_prompts": _step(ranks)}
    sampling = base.sampling.model_copy(update={"backend": backend_of(base)})
    return base.model_copy(
        update={
            "training": base.training.model_copy(update=training),
            "sampling": sampling,
            "selection": selection_of(base),
        }
    )


def _step(ranks: int) -> int:
    """Return the prompts of a step: half of those to train on, so that there are two steps."""
    return max(1, PROMPTS // 2 // ranks) * ranks
