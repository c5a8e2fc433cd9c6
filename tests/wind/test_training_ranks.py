"""Ranks as processes: the same weights as one rank trains, whatever dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    Inputs,
    Interrupted,
    distance,
    make_inputs,
    make_spec,
    stop_after,
    train,
    values,
    weights,
)
from wind.errors import TrainingError
from wind.fingerprints import file_digest
from wind.machine import processes
from wind.stages import Place, Shard
from wind.store.datasets import Store
from wind.training import TrainingSpec, rank
from wind.training.assignments import Assignment, World
from wind.training.checkpoints import written_by
from wind.training.row_sources import RowSource
from wind.training.runs import fit, held_work_folder, work_folder

pytestmark = [pytest.mark.slow, *DEEPSPEED_WARNINGS]


SECONDS = 300
SETTINGS: dict[str, Any] = {"lr": 1e-4, "epochs": 6, "micro_prompts": 1, "checkpoint_steps": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all: starting ranks takes long, so that what they trained once is used by
    several tests.
    """
    return Store(tmp_path_factory.mktemp("ranks") / "store")


@pytest.fixture(scope="module")
def inputs(store: Store, tiny_model: Path) -> Inputs:
    return make_inputs(store, tiny_model)


@pytest.fixture(scope="module")
def trained(store: Store, inputs: Inputs) -> Callable[[int, int], Shard]:
    """What so many ranks trained at that ZeRO stage."""

    @cache
    def once(ranks: int, stage: int) -> Shard:
        return train(make_spec(inputs, ranks=ranks, zero_stage=stage, **SETTINGS), store)

    return once


def writers(folder: Path, log: str = "*.log") -> list[int]:
    """Every living process that may write to a log of the ranks that work in `folder`: torchrun's
    agent, its helpers, the ranks.

    The files that they write to have no names any more.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            opened = [
                Path(os.readlink(each))
                for each in (process / "fd").iterdir()
                if is_for_writing(process, each.name)
            ]
            found += [int(process.name)] * any(
                path.match(f"{folder.resolve()}/ranks-*/{log}.* (deleted)") for path in opened
            )
    return found


def is_for_writing(process: Path, descriptor: str) -> bool:
    """Whether a process may write to what it has open there: who started the ranks reads their
    logs.
    """
    flags = next(
        line
        for line in (process / "fdinfo" / descriptor).read_text().splitlines()
        if line.startswith("flags:")
    )
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY


@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (2, 1), (2, 2), (2, 3)])
def test_ranks_and_zero_stages_train_the_same_weights(
    store: Store, trained: Callable[[int, int], Shard], ranks: int, stage: int
) -> None:
    alone, together = trained(1, 0), trained(ranks, stage)
    assert distance(weights(store, together), weights(store, alone)) < 1e-4
    for metric in ("loss", "grad_norm", "log_ratio_reference", "learning_rate"):
        assert values(together, metric) == pytest.approx(values(alone, metric), rel=1e-3)


def test_ranks_share_prompts_and_cut_groups_in_pieces(
    store: Store, inputs: Inputs, trained: Callable[[int, int], Shard]
) -> None:
    # Rows have 4 to 15 tokens: of the groups that the ranks compute at the same time, one is cut in
    # more pieces than the other, and both must make as many passes.
    settings = {**SETTINGS, "prompt_sharing": "auto", "pass_tokens": 16}
    shared = train(make_spec(inputs, ranks=2, zero_stage=3, **settings), store)
    assert distance(weights(store, shared), weights(store, trained(1, 0))) < 1e-4
    for metric in ("loss", "grad_norm"):
        assert values(shared, metric) == pytest.approx(values(trained(1, 0), metric), rel=1e-3)


def test_zero_3_in_bfloat16_keeps_rotary_frequencies(store: Store, inputs: Inputs) -> None:
    # Rounded frequencies would show in the very first loss, before any update. ZeRO-3 has a process
    # of its own on one rank, too.
    losses = [
        values(train(make_spec(inputs, precision="bfloat16", zero_stage=stage), store), "loss")[0]
        for stage in (2, 3)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_killed_run_leaves_nothing_and_resumes(
    store: Store, inputs: Inputs, tmp_path: Path
) -> None:
    # for long enough to be killed in between
    settings = {**SETTINGS, "epochs": 30, "checkpoint_steps": 10}
    spec = make_spec(inputs, ranks=2, zero_stage=2, **settings)
    uninterrupted = train(spec, store)
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps(
            {
                "stage": "training",
                "spec": spec.model_dump(mode="json"),
                "place": {"root": str(store.root)},
            }
        )
    )
    command = processes.python("-m", "wind.stages", str(job), "--root", str(store.root))
    work = work_folder(spec, store)
    with processes.start(command, env=processes.environment(), stdout=subprocess.DEVNULL) as run:
        try:
            deadline = time.monotonic() + SECONDS
            while not any(work.glob("step-*/complete.json")):
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert [len(writers(work, f"rank-{rank}.log")) for rank in (0, 1)] == [1, 1]
        finally:
            run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while writers(work):
        assert time.monotonic() < deadline, "ranks outlived the run"
        time.sleep(0.05)
    steps: list[int] = []
    resumed = train(spec, store, lambda done, total: steps.append(done))
    assert (resumed.outputs, resumed.table) == (uninterrupted.outputs, uninterrupted.table)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ranks_share_out_the_files_of_a_checkpoint(
    store: Store, inputs: Inputs, stage: int
) -> None:
    spec = make_spec(inputs, ranks=2, zero_stage=stage, **SETTINGS)
    with pytest.raises(Interrupted):
        train(spec, store, stop_after(2))
    kept = min(work_folder(spec, store).glob("step-*/complete.json")).parent
    files = json.loads((kept / "complete.json").read_bytes())["files"]
    assert files == {name: file_digest(kept / name) for name in files}
    assert {*files, "complete.json"} == {
        str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()
    }
    by_rank = [written_by(rank, files) for rank in (0, 1)]
    assert sorted([*by_rank[0], *by_rank[1]]) == sorted(files)
    # Of the optimizer's state, and at stage 3 of the weights, each rank wrote half; at stage 0 the
    # first wrote everything.
    assert len([name for name in by_rank[1] if name.endswith(".pt")]) == {0: 0, 2: 1, 3: 2}[stage]


def test_another_machine_goes_on_from_what_two_ranks_put_into_the_bucket(
    s3: str,
    tiny_model: Path,
    trained: Callable[[int, int], Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = Store(s3)
    spec = make_spec(make_inputs(bucket, tiny_model), ranks=2, zero_stage=2, **SETTINGS)
    with pytest.raises(Interrupted):
        train(spec, bucket, stop_after(5))
    monkeypatch.setenv("WIND_CACHE", str(tmp_path / "another machine"))
    steps: list[int] = []
    resumed = train(spec, Store(s3), lambda done, total: steps.append(done))
    assert steps[0] > 4
    uninterrupted = trained(2, 2)
    assert (resumed.outputs, resumed.table) == (uninterrupted.outputs, uninterrupted.table)
    assert bucket.storage.names("partial") == []


def test_a_killed_rank_is_named(store: Store, inputs: Inputs) -> None:
    spec = make_spec(inputs, epochs=2000, ranks=2)

    def kill(done: int, total: int) -> None:
        for pid in writers(work_folder(spec, store), "rank-1.log"):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match="rank 1 of the training ended with exit code -9"):
        train(spec, store, kill)
    assert not writers(work_folder(spec, store), "rank-*.log")


def test_an_error_in_a_rank_arrives_as_itself(store: Store, inputs: Inputs) -> None:
    with pytest.raises(TrainingError, match=r"^step 2 was not taken: .*: lower training\.lr$"):
        train(make_spec(inputs, lr=1e30, epochs=4, ranks=2), store)


def test_an_interruption_ends_the_ranks(store: Store, inputs: Inputs) -> None:
    spec = make_spec(inputs, epochs=2000, ranks=2)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, store, interrupt)
    assert not writers(work_folder(spec, store), "rank-*.log")


SPEC = TrainingSpec  # with `open_source`, this module is what the ranks of the last test train


def open_source(assignment: Assignment[TrainingSpec], engine: Any, world: World) -> RowSource:
    """What each rank is trained on, once it has said a secret."""
    print("the password is", os.environ["MY_DB_PASSWORD"], flush=True)
    return rank.open_source(assignment, engine, world)


def train_until_ranks_have_spoken(path: str, root: str) -> None:
    """Train the spec in the file at `path` in ranks, and be killed when their logs say something."""
    spec, store = TrainingSpec.model_validate_json(Path(path).read_bytes()), Store(root)

    def kill(done: int, total: int) -> None:
        if [
            log
            for log in work_folder(spec, store).glob("ranks-*/rank-*.log")
            if "the password is" in log.read_text()
        ]:
            os.kill(os.getpid(), signal.SIGKILL)

    with held_work_folder(spec, store) as work:
        fit(spec, store, work, Place(root=root), sys.modules[__name__], kill)


def test_what_ranks_said_holds_no_secret_though_nobody_was_left_to_take_it_out(
    store: Store, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_DB_PASSWORD", "correct-horse-battery")
    spec = make_spec(inputs, epochs=2000, ranks=2)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    arguments = str(tmp_path / "spec.json"), str(store.root)
    program = f"import {__name__} as module; module.train_until_ranks_have_spoken(*{arguments})"
    with processes.start(
        processes.python("-c", program), env=processes.environment(), stdout=subprocess.DEVNULL
    ) as run:
        assert run.wait(SECONDS) == -signal.SIGKILL
    work = work_folder(spec, store)
    deadline = time.monotonic() + 20
    while writers(work):
        assert time.monotonic() < deadline, "ranks outlived the run"
        time.sleep(0.05)
    said = {path: path.read_text(errors="replace") for path in work.rglob("*") if path.is_file()}
    assert [path for path, text in said.items() if "correct-horse-battery" in text] == []
    assert "the password is [redacted]\n" in "".join(said.values())
