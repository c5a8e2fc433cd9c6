"""Which device a run's workers have, and runs for which there are too few."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.devices import described, device_of, refuse_missing_gpus
from tasks.run import open_run
from wind.config.loading import bandit_config, load_config
from wind.config.recipe import DistillConfig
from wind.config.runs import RunConfig
from wind.errors import ConfigError
from wind.machine import devices
from wind.store.datasets import Store

CPU_BUILD = "torch 2.13.0+cpu"
Machine = Callable[..., None]
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes the machine one with these GPUs and that torch."""

    def be(*gpus: str, cpu_build: str | None = None) -> None:
        monkeypatch.setattr(devices, "gpus", lambda: gpus)
        monkeypatch.setattr(devices, "cpu_build", lambda: cpu_build)

    return be


def recipe(*overrides: str) -> DistillConfig:
    device = "workers.device=auto"  # as recipes have it by default
    return load_config(
        DEMO, (device, "workers.processes=1", "training.micro_prompts=1", *overrides)
    )


@pytest.mark.parametrize(
    ("device", "gpus", "build", "expected", "words"),
    [
        ("auto", ["H200", "H200"], None, "cuda", "on 2 x H200"),
        ("auto", [], None, "cpu", "on the CPU"),
        (
            "auto",
            ["H200"],
            CPU_BUILD,
            "cpu",
            "on the CPU: torch 2.13.0+cpu cannot use the 1 x H200",
        ),
        ("auto", [], CPU_BUILD, "cpu", "on the CPU"),
        ("cpu", ["H200"], None, "cpu", "on the CPU"),
        ("cuda", ["H200"], None, "cuda", "on 1 x H200"),
    ],
)
def test_the_device_is_that_of_a_gpu_which_torch_can_use(
    machine: Machine, device: str, gpus: list[str], build: str | None, expected: str, words: str
) -> None:
    machine(*gpus, cpu_build=build)
    config = recipe(f"workers.device={device}")
    assert (device_of(config), described(config)) == (expected, words)
    refuse_missing_gpus(config)


def test_workers_of_another_interpreter_have_another_torch(machine: Machine) -> None:
    machine("H200", cpu_build=CPU_BUILD)
    config = recipe("workers.python.transformers=/envs/cuda/bin/python")
    assert (device_of(config), described(config)) == ("cuda", "on 1 x H200")
    refuse_missing_gpus(config)


@pytest.mark.parametrize(
    ("overrides", "gpus", "message"),
    [
        (
            ["workers.processes=3"],
            2,
            r"^workers.processes is 3, one GPU each, and CUDA sees 2 x H200: lower it, or see "
            r"CUDA_VISIBLE",
        ),
        (
            ["training.ranks=4"],
            2,
            r"^training.ranks is 4, one GPU each, and CUDA sees 2 x H200: lower it",
        ),
        (
            ["workers.device=cuda"],
            0,
            r"^workers.device is cuda and CUDA sees no GPU: see nvidia-smi and "
            r"CUDA_VISIBLE_DEVICES, or set",
        ),
    ],
)
def test_more_than_there_is_is_refused(
    machine: Machine, overrides: list[str], gpus: int, message: str
) -> None:
    machine(*["H200"] * gpus)
    with pytest.raises(ConfigError, match=message):
        refuse_missing_gpus(recipe(*overrides))
    machine(*["H200"] * 4)
    refuse_missing_gpus(recipe(*overrides))


def test_processes_and_ranks_on_a_cpu_need_no_gpu(machine: Machine) -> None:
    machine()
    refuse_missing_gpus(recipe("workers.processes=8", "training.ranks=4"))


def test_a_build_for_cpus_is_refused_where_cuda_is_asked_for(machine: Machine) -> None:
    machine("H200", cpu_build=CPU_BUILD)
    message = (
        r"workers.device is cuda, which torch 2.13.0\+cpu cannot use: make setup "
        r"LOCK=requirements/gpu.txt"
    )
    with pytest.raises(ConfigError, match=message):
        refuse_missing_gpus(RunConfig.model_validate({"run": "x", "workers": {"device": "cuda"}}))


def test_a_run_is_refused_before_it_leaves_anything_and_a_plan_is_not(
    machine: Machine, tmp_path: Path
) -> None:
    machine("H200")
    config = bandit_config(("workers.processes=2",), root=str(tmp_path / "store"), seed=0)
    with pytest.raises(ConfigError, match=r"workers.processes is 2"):
        open_run(config, quiet=True).__enter__()
    assert not (tmp_path / "store").exists()
    with open_run(config, planning=True, quiet=True) as plan:
        assert plan.planning


def test_a_run_says_first_what_it_runs_on(
    machine: Machine, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("H200", "H200")
    config = bandit_config((), root=str(store.root), seed=0)
    with (
        open_run(config) as around,
        open_run(config.model_copy(update={"run": "within"}), pool=around.pool),
    ):
        assert capsys.readouterr().err.splitlines() == [f"run {config.run} on 2 x H200"]
