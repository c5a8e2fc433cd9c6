"""The device of a run's workers, and whether this machine has what the run asks for."""

from typing import Literal

from wind.config.recipe import DistillConfig
from wind.config.runs import RunConfig
from wind.errors import ConfigError
from wind.machine import devices


def device_of(config: RunConfig) -> Literal["cpu", "cuda"]:
    """The device of the workers: as configured, or cuda where there is a GPU that their torch can
    use.

    Raises ConfigError if there is a CUDA driver that does not start.
    """
    if config.workers.device != "auto":
        return config.workers.device
    return "cuda" if devices.gpus() and cpu_build(config) is None else "cpu"


def described(config: RunConfig) -> str:
    """The device in a few words, with GPUs that are there and not used."""
    if device_of(config) == "cuda":
        return f"on {devices.listed(devices.gpus())}"
    if config.workers.device == "auto" and devices.gpus():
        return f"on the CPU: {cpu_build(config)} cannot use the {devices.listed(devices.gpus())}"
    return "on the CPU"


def refuse_missing_gpus(config: RunConfig) -> None:
    """Raises ConfigError, one line, if `config` asks for more GPUs than there are, or for any that
    torch cannot use.
    """
    if device_of(config) == "cpu":
        return
    if build := cpu_build(config):
        raise ConfigError(
            f"workers.device is cuda, which {build} cannot use: make setup "
            "LOCK=requirements/gpu.txt, or set workers.python"
        )
    found = devices.gpus()
    if not found:
        raise ConfigError(
            "workers.device is cuda and CUDA sees no GPU: see nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or set it to cpu"
        )
    wanted = {"workers.processes": config.workers.processes}
    if isinstance(config, DistillConfig):
        wanted["training.ranks"] = config.training.ranks
    for name, count in wanted.items():
        if count > len(found):
            seen = devices.listed(found)
            raise ConfigError(
                f"{name} is {count}, one GPU each, and CUDA sees {seen}: lower it, or see "
                "CUDA_VISIBLE_DEVICES"
            )


def cpu_build(config: RunConfig) -> str | None:
    """The torch that keeps the workers from any GPU; None where it does not, or their interpreter
    is another.
    """
    return None if "transformers" in config.workers.python else devices.cpu_build()
