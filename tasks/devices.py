"""Choice of the workers' device, and checks that its GPUs exist."""

from typing import Literal

from wind.config.recipe import DistillConfig
from wind.config.runs import RunConfig
from wind.errors import ConfigError
from wind.machine import devices


def device_of(config: RunConfig) -> Literal["cpu", "cuda"]:
    """Return the device of the workers.

    It is the configured one or, on auto, cuda if there is a GPU that the workers' torch can use,
    else cpu. Raises ConfigError if there is a CUDA driver that does not start.
    """
    if config.workers.device != "auto":
        return config.workers.device
    return "cuda" if devices.gpus() and cpu_build(config) is None else "cpu"


def described(config: RunConfig) -> str:
    """Describe the device in a few words.

    This names any GPUs that are present but not used.
    """
    if device_of(config) == "cuda":
        return f"on {devices.listed(devices.gpus())}"
    if config.workers.device == "auto" and devices.gpus():
        return f"on the CPU: {cpu_build(config)} cannot use the {devices.listed(devices.gpus())}"
    return "on the CPU"


def refuse_missing_gpus(config: RunConfig) -> None:
    """Check that this machine has the GPUs that `config` asks for.

    Raises ConfigError, in one line, if `config` asks for more GPUs than there are, or for any that
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
    """Return the torch build that keeps the workers off every GPU.

    None if torch does not, or if the workers have a different interpreter.
    """
    return None if "transformers" in config.workers.python else devices.cpu_build()
