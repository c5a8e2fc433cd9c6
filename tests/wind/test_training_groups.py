"""How ranks meet, and which of them reads which file of a checkpoint back."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from wind.errors import TrainingError
from wind.training.assignments import World
from wind.training.checkpoints import written_by
from wind.training.rank import join, threads_of


def joined(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, rank: int, ranks: int
) -> tuple[World, dict[str, Any]]:
    """What `join` gives on a machine with two GPUs, and what it told torch."""
    told: dict[str, Any] = {}
    for name, value in {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.update(device=device))
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, **rest: told.update(rest, backend=backend),
    )
    return join(kind, folder), told


def test_ranks_on_gpus_are_patient_and_bound_to_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world, told = joined(monkeypatch, tmp_path, "cuda", 1, 2)
    assert world == World(rank=1, ranks=2, device="cuda:1")
    assert (told["backend"], told["rank"], told["world_size"], told["device"]) == ("nccl", 1, 2, 1)
    assert told["device_id"] == torch.device("cuda:1")
    # 980 GB of a 70B model's state at the 200 MB/s of a file server: 82 minutes, and NCCL alone
    # would give it ten.
    assert told["timeout"] > timedelta(seconds=980e9 / 200e6)


def test_one_rank_on_a_gpu_is_not_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # DeepSpeed 8248: the groups that torch then splits off a group of one fail in NCCL.
    world, told = joined(monkeypatch, tmp_path, "cuda", 0, 1)
    assert world == World(rank=0, ranks=1, device="cuda:0")
    assert told["device_id"] is None


def test_ranks_on_a_cpu_have_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world, told = joined(monkeypatch, tmp_path, "cpu", 1, 4)
    assert world == World(rank=1, ranks=4, device="cpu")
    assert (told["backend"], "device" in told, told["device_id"]) == ("gloo", False, None)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"training.ranks is 3, but this machine has 2 GPUs: lower it"
    ):
        joined(monkeypatch, tmp_path, "cuda", 0, 3)


def test_threads_are_one_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(20)))
    worlds = [("cpu", 2), ("cuda:1", 1), ("cuda:1", 8), ("cuda:1", 32)]
    threads = [threads_of(World(rank=0, ranks=ranks, device=device)) for device, ranks in worlds]
    assert threads == [1, 20, 2, 1]


def test_a_file_of_a_checkpoint_has_one_writer() -> None:
    names = [
        "engine/mp_rank_00_model_states.pt",  # DeepSpeed's of all ranks, at stages 0 to 2
        "engine/zero_pp_rank_0_mp_rank_00_model_states.pt",  # at stage 3 every rank's own
        "engine/zero_pp_rank_1_mp_rank_00_model_states.pt",
        "engine/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "engine/zero_pp_rank_10_mp_rank_00_optim_states.pt",
        "anchor-1.safetensors",
        "anchor-0.safetensors",
        "zero_to_fp32.py",
        "../../zero_pp_rank_1_of_a_folder/rollouts/step-00000001.arrow",
    ]
    written = {rank: [names.index(name) for name in written_by(rank, names)] for rank in range(11)}
    assert {rank: numbers for rank, numbers in written.items() if numbers} == {
        0: [0, 1, 6, 7, 8],
        1: [2, 3, 5],
        10: [4],
    }
