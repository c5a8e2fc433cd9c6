"""The checks of a machine: all of them on this one, and what they say of one that lacks something."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import doctor
from flows.doctor import Check, Doctor
from flows.doctor.recipe import examined_config
from tasks.workers import Pool
from tests.flows.conftest import Wind
from tests.wind.training_case import DEEPSPEED_WARNINGS
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.errors import StageError
from wind.machine import devices

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
NAMES = [
    "machine",
    "devices",
    "interpreters",
    "disk",
    "prompts",
    "sampler",
    "reload",
    "log-probabilities",
    "training",
    "resume",
]

pytestmark = DEEPSPEED_WARNINGS


def on_one_rank() -> DistillConfig:
    """The checks with a training in the worker itself, which takes a second."""
    config = examined_config(None)
    training = config.training.model_copy(update={"ranks": 1})
    return config.model_copy(update={"training": training})


def examined(config: DistillConfig, tmp_path: Path, pool: Pool | None = None) -> dict[str, Check]:
    (tmp_path / "folder").mkdir()
    told: list[Check] = []
    doctor = Doctor(config, tmp_path / "folder", tmp_path / "store", pool)
    assert doctor.examine(told.append) == told
    assert [check.name for check in told] == NAMES
    return {check.name: check for check in told}


@pytest.mark.slow
def test_a_machine_that_can_run_everything_passes(tmp_path: Path, pool: Pool) -> None:
    found = examined(on_one_rank(), tmp_path, pool)
    assert {check.outcome for check in found.values()} == {"pass"}, found
    assert found["sampler"].numbers["tokens_per_second"] > 0
    assert found["log-probabilities"].numbers["gap_nats_per_token"] < 1e-5
    assert found["training"].numbers["steps"] == 2
    assert found["resume"].numbers["same_bytes"]
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.slow
@pytest.mark.gpu
def test_a_gpu_passes(tmp_path: Path) -> None:
    found = examined(examined_config(None), tmp_path)
    assert {check.outcome for check in found.values()} == {"pass"}, found
    assert found["training"].numbers["ranks"] == len(devices.gpus())


@pytest.mark.slow
def test_weights_that_stay_and_other_log_probabilities_are_found(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that answers with the weights it had, planted; and a bound that nothing keeps."""
    compute = Doctor._compute
    first: dict[str, Any] = {}

    def stale(self: Doctor, stage: str, spec: Any, **given: Any) -> Any:
        if stage != "generations":
            return compute(self, stage, spec, **given)
        policy = first.setdefault("policy", spec.policy)
        return compute(self, stage, spec.model_copy(update={"policy": policy}), **given)

    monkeypatch.setattr(Doctor, "_compute", stale)
    checks = Doctor(on_one_rank(), tmp_path, tmp_path, pool)
    found = {check.name: check for check in checks.examine(lambda check: None)}
    assert found["reload"].outcome == "fail"
    assert "the weights that it had before: set workers.keep_warm=never" in found["reload"].said
    assert found["training"].said == "needs log-probabilities"
    monkeypatch.setattr(doctor, "GAP", {"float32": -1.0})
    check = checks._checked("log-probabilities", None, checks._agreement)
    assert check.outcome == "fail"
    assert "-1 is allowed: set sampling.backend=transformers" in check.said


@pytest.mark.usefixtures("prefect_server")
def test_the_command_says_the_cure_and_fails(
    command: Wind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that is not there, in words and as JSON, which names no folder of the user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = f"workers.python.training={tmp_path / 'nowhere' / 'python'}"
    arguments = ("doctor", str(DEMO), "--set", missing, "--set", f"root={tmp_path / 'store'}")
    code, out, _ = command(*arguments)
    assert code == 1
    lines = {line[6:23].strip(): line for line in out.splitlines()}
    assert list(lines) == NAMES
    assert lines["interpreters"].startswith("fail")
    assert lines["interpreters"].endswith("correct it")
    assert lines["sampler"].endswith("needs prompts")
    code, out, _ = command(*arguments, "--json")
    assert code == 1
    checks = json.loads(out)
    assert [check["outcome"] for check in checks] == ["pass"] * 2 + ["fail", "pass"] + ["skip"] * 6
    assert str(tmp_path) not in out


def test_messages_lose_the_users_folders_and_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    checks = Doctor(examined_config(None), tmp_path / "made", tmp_path)
    key = "hf_" + "a1B2" * 9

    def step() -> str:
        raise StageError(f"/home/somebody/envs and {tmp_path / 'made'}/x with {key}")

    check = checks._checked("sampler", None, step)
    assert check.outcome == "fail"
    assert check.said.startswith("~/envs and the temporary folder/x with ")
    assert key not in check.said


def test_the_checks_are_those_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its devices, engines and dtypes, with all GPUs in training and two steps of it."""
    monkeypatch.setattr(devices, "gpus", lambda: ("H100",) * 4)
    monkeypatch.setattr(devices, "cpu_build", lambda: None)
    given = load_config(
        DEMO,
        [
            "workers={processes: 4, device: cuda}",
            "inference.dtype=bfloat16",
            "training={precision: bfloat16, zero_stage: 3, optimizer: rmsprop}",
            "sampling.backend=vllm",
        ],
    )
    config = examined_config(given)
    assert (config.workers, config.inference) == (given.workers, given.inference)
    training = config.training
    assert (training.precision, training.zero_stage, training.optimizer) == (
        "bfloat16",
        3,
        "rmsprop",
    )
    assert (training.ranks, training.batch_prompts) == (4, 16)
    assert config.sampling.backend == "vllm"


@pytest.mark.parametrize(
    ("changed", "value", "check", "said"),
    [
        ("machine.free_memory", lambda: 1e9, "machine", "1.0 GB of memory are free: end what uses"),
        (
            "machine.disk_speed",
            lambda folder: (1e6, 1e6),
            "disk",
            "writes 1 MB/s: set root to a faster",
        ),
        (
            "NEEDED",
            dict.fromkeys(doctor.NEEDED, "missing"),
            "interpreters",
            "missing is not installed",
        ),
    ],
)
def test_what_is_short_is_said_with_the_cure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
    value: Callable[..., Any],
    check: str,
    said: str,
) -> None:
    monkeypatch.setattr(f"flows.doctor.{changed}", value)
    checks = Doctor(examined_config(None), tmp_path, tmp_path)
    found = checks._checked(check, None, getattr(checks, f"_{check}"))
    assert found.outcome == "fail"
    assert said in found.said


def test_more_ranks_than_gpus_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver(("H100",), (80 * 10**9,), "13.0"))
    monkeypatch.setattr(devices, "gpus", lambda: ("H100",))
    monkeypatch.setattr(devices, "cpu_build", lambda: None)
    given = load_config(DEMO, ["workers={processes: 2, device: cuda}"])
    checks = Doctor(examined_config(given), tmp_path, tmp_path)
    found = checks._checked("devices", None, checks._devices)
    assert (found.outcome, found.numbers["gpus"]) == ("fail", ["H100"])
    assert "workers.processes is 2, one GPU each, and CUDA sees 1 x H100" in found.said
