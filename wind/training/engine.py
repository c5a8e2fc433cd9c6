"""The DeepSpeed engine around the policy.

This module derives DeepSpeed's JSON, chooses the optimizer, loads the policy and gathers its
weights again. Import it only in the ranks and after the accelerator is chosen: DeepSpeed picks its
device when it is first imported.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import deepspeed
import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from wind.config.training import TrainingConfig
from wind.machine.terminal import complain
from wind.models.sequence_logps import SequenceLogps, share_prompts
from wind.training.intercepts import LogpsAndIntercept
from wind.training.policies import load_policy

# To sum over ranks on a CPU, DeepSpeed compiles an operator of its own when its communication
# starts, if there is a compiler. That takes minutes, behind a lock that a killed process never
# releases. gloo does not need it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.utils.logger.setLevel("WARNING")

# Passed to DeepSpeed as they are: its own fused versions need a compiler, and it lacks RMSprop.
OPTIMIZERS: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def deepspeed_config(training: TrainingConfig) -> dict[str, Any]:
    """Return DeepSpeed's JSON for `training`; everything in it is derived."""
    is_bf16 = training.precision == "bfloat16"
    config: dict[str, Any] = {
        "train_batch_size": training.batch_prompts,
        "train_micro_batch_size_per_gpu": training.micro_prompts,
        "gradient_accumulation_steps": training.batch_prompts
        // (training.micro_prompts * training.ranks),
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": is_bf16},
        "zero_optimization": zero_config(training),
        # offloaded state is stepped by torch's optimizer too
        "zero_force_ds_cpu_optimizer": False,
        # RMSprop is not on DeepSpeed's list, but its state is a tensor like Adam's two
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if is_bf16 and training.zero_stage > 0:
        # Summing many micro-batches in bfloat16 would lose small gradients; DeepSpeed offers this
        # only with ZeRO.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def zero_config(training: TrainingConfig) -> dict[str, Any]:
    """Return ZeRO's settings: what it shards over ranks and offloads."""
    host = {"device": "cpu"}
    offloaded = {
        "none": {},
        "optimizer": {"offload_optimizer": host},
        "optimizer_and_parameters": {"offload_optimizer": host, "offload_param": host},
    }
    return {"stage": training.zero_stage, **offloaded[training.offload]}


def start_engine(folder: Path, training: TrainingConfig, seed: int, *, with_intercept: bool) -> Any:
    """Return a DeepSpeed engine around `SequenceLogps` of the policy in `folder`.

    The process group must exist. `seed` initializes the adapters; with `with_intercept` the wrapper
    is `LogpsAndIntercept`. Raises ConfigError if the policy lacks a layer that should have an
    adapter.
    """
    # finds torch's process group: partitioning needs to know the ranks
    deepspeed.init_distributed(dist_init_required=False)
    config = deepspeed_config(training)
    # While this object lives, transformers partitions parameters as it loads them, so that no rank
    # ever holds the whole model.
    partition = HfDeepSpeedConfig(config) if training.zero_stage == 3 else None
    model = load_policy(folder, training.precision, training.attention)
    if partition and training.precision == "bfloat16":
        restore_constants(model)
    del partition
    if training.lora:
        from wind.training.lora import add_adapters  # imports peft, which takes seconds

        add_adapters(model, training.lora, seed)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        # transformers recomputes only in training mode; dropout is off
        model.train()
    wrapped = LogpsAndIntercept(model) if with_intercept else SequenceLogps(model)
    engine, *_ = deepspeed.initialize(
        model=wrapped,
        model_parameters=parameter_groups(wrapped, training),
        optimizer=lambda groups: new_optimizer(
            training, groups, deepspeed.accelerator.get_accelerator().device_name()
        ),
        config=config,
        dist_init_required=False,
    )
    if training.prompt_sharing == "auto":
        # under ZeRO-3 only the engine can gather the weights
        _share_prompts(engine)
    return engine


def _share_prompts(engine: Any) -> None:
    """Have the engine's policy share prompts; if it cannot, say why."""
    reason = share_prompts(engine.module)
    if reason is not None and engine.global_rank == 0:
        complain(f"training.prompt_sharing: the policy cannot share prompts: {reason}")


def restore_constants(model: torch.nn.Module) -> None:
    """Recompute in float32 the constants of modules without weights.

    These are derived from the config, such as rotary frequencies. Loading under ZeRO-3 rounds them
    to bfloat16, which shifts log-probabilities by tenths of a nat; scoring keeps them in float32.
    """
    for module in model.modules():
        if hasattr(module, "config") and not any(True for _ in module.parameters()):
            for name, constant in type(module)(module.config).named_buffers(recurse=False):
                rounded = module.get_buffer(name)
                rounded.data = constant.to(rounded.device)


def parameter_groups(wrapped: SequenceLogps, training: TrainingConfig) -> list[dict[str, Any]]:
    """Split the trained parameters into matrices, which decay, and the rest.

    Norms and biases have no weight decay; frozen weights are in no group. The head of a learned
    intercept has a group of its own. The scheduled learning rate is multiplied by `lr_factor`.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for parameter in filter(lambda parameter: parameter.requires_grad, wrapped.model.parameters()):
        # a parameter partitioned by ZeRO-3 keeps its shape only here
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (decayed if len(shape) > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay, "lr_factor": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_factor": 1.0},
    ]
    if isinstance(wrapped, LogpsAndIntercept):
        head = list(wrapped.head.parameters())
        groups.append(
            {"params": head, "weight_decay": 0.0, "lr_factor": training.intercept_lr / training.lr}
        )
    return [group for group in groups if group["params"]]


def new_optimizer(
    training: TrainingConfig, groups: list[dict[str, Any]], device: str
) -> torch.optim.Optimizer:
    """Return the optimizer of parameter `groups` for a training on `device`.

    With GPUs AdamW is torch's fused version, which needs no temporary copy of the parameters, and
    takes a sixth of the time where its state is in host memory. It rounds differently, so a
    training on a CPU, where an optimizer step is short beside the rest, keeps the plain one.
    """
    if training.optimizer == "adamw" and device == "cuda":
        return torch.optim.AdamW(groups, lr=training.lr, fused=True)
    return OPTIMIZERS[training.optimizer](groups, lr=training.lr)


def optimizer_step(engine: Any, lr: float) -> float:
    """Update the weights with the accumulated gradient; return its norm.

    The norm is that before clipping. If the norm is not finite, the weights stay as they were on
    all ranks.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    if engine.zero_optimization() or engine.bfloat16_enabled():
        # these optimizers skip a step whose norm is not finite, and report it as infinite
        engine.step()
        return float(engine.get_global_grad_norm())
    # In float32 without ZeRO, DeepSpeed takes every step and does not report the norm. The gradient
    # is already summed over ranks.
    norm = float(
        torch.nn.utils.get_total_norm(
            [
                parameter.grad
                for parameter in engine.module.parameters()
                if parameter.grad is not None
            ]
        )
    )
    if math.isfinite(norm):
        engine.step()
    return norm


def gathered_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Gather the trained weights, by name, on the CPU of rank 0.

    Other ranks get an empty mapping. Every rank must call it.
    """
    model = engine.module.model
    weights: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            if engine.global_rank == 0:
                # One copy of a tied weight, so that saving recognizes the tie.
                weights[name] = copies.setdefault(id(tensor), tensor.detach().to("cpu", copy=True))
    return weights
